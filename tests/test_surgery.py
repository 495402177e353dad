"""A pruned network is the masked network: same logits, same training.

In float64, so that rounding neither hides nor causes a difference. Pruning
couples a layer to its neighbours only, so networks with few blocks prove every
kind of coupling. One network has its full depth here, the other six in
`make test-long` (all narrower, on small images).
"""

from functools import partial
import re

import jax
import jax.numpy as jnp
from keeping import masks, patterns, randomised
import numpy as np
import pytest

from dnal_jax import models, trees
from dnal_jax.data.batches import Batch
from dnal_jax.graph import surgery, walk
from dnal_jax.search import channel_gates
from dnal_jax.training.optimizer import ParamGroup
from dnal_jax.training.schedule import LearningRate
from dnal_jax.training.stages import Stage
from dnal_jax.training.step import train_step
from dnal_jax.training.train_state import create_train_state

BATCH = 12
# {network: (image side, fields)}: a block for each kind of shortcut, at widths
# where none is missing. Sides leave several positions to the last convolutions.
SHALLOW = {
  'vgg16': (8, {'stages': ((64, 64), (128, 128)), 'hidden': (256, 256)}),
  'resnet50': (16, {'blocks': (2, 2), 'features': (256, 512)}),
  'resnet56_cifar': (8, {'blocks': (2, 2), 'features': (32, 64)}),
  'mobilenet_v2': (
    16,
    {'width': 0.5, 'stages': ((1, 16, 1, 1), (6, 24, 2, 2))},
  ),
  'mobilenet_v2_cifar': (
    8,
    {'width': 0.5, 'stages': ((1, 16, 1, 1), (6, 24, 1, 1), (6, 32, 2, 2))},
  ),
  'proxyless': (16, {'stages': ((24, 2, 2), (40, 1, 1))}),
}
DEEP = {  # {network: image side}
  'vgg16': 32,
  'vgg16_cifar': 32,
  'resnet50': 64,
  'resnet56_cifar': 8,
  'mobilenet_v2': 64,
  'mobilenet_v2_cifar': 16,
  'proxyless': 64,
}
# These programs run twice and are compiled 30 times.
FAST_COMPILE = {'compiler_options': {'xla_backend_optimization_level': 0}}
WEIGHTS = {'all': ParamGroup('params/.*', LearningRate(0.01), 0.9, 1e-4)}
# sigmoid(1e4 * s) is 0 or 1 to the bit for s = -1, 1: these gates are masks.
MASKED = Stage('masked', 1, WEIGHTS, delta_end=1e4)
OPEN = Stage('open', 1, WEIGHTS)


@pytest.fixture
def float64():
  with jax.enable_x64(True):
    yield


@pytest.fixture
def native_ops(monkeypatch):
  """One operation to compile for each convolution, not 49."""

  def native(*args, cpu, default):
    return default(*args)

  monkeypatch.setattr(jax.lax, 'platform_dependent', native)


def build(name, **fields):
  return models.get(name).build(classes=10, **{'width': 0.25, **fields})


def measured(variables, gate_logits, images, labels, *, net, stage):
  """Logits in eval mode; the loss of a train step; after it, logits in train
  mode, in which every weight, statistic and gradient has a part.

  The supernet is compared without that step, whose gradient alone compiles
  for minutes."""
  gates = channel_gates.gate_values(gate_logits, stage.hyperparams(0).delta)
  params, stats = variables['params'], variables['batch_stats']
  evaluated = net.apply(
    {'params': params, 'batch_stats': stats, 'gates': gates}, images
  )
  if isinstance(net, models.proxyless.Proxyless):
    trained, _ = net.apply(
      {'params': params, 'batch_stats': stats, 'gates': gates},
      images,
      train=True,
      mutable=['batch_stats'],
    )
    return {'eval': evaluated, 'train': trained}
  state = create_train_state(stage, params, gate_logits, stats)
  state, metrics = train_step(
    state,
    Batch(images, labels, jnp.ones(BATCH)),
    stage.hyperparams(0),
    net=net,
    stage=stage,
    steps_per_epoch=10,
  )
  trained, _ = net.apply(
    {'params': state.params, 'batch_stats': state.batch_stats, 'gates': gates},
    images,
    train=True,
    mutable=['batch_stats'],
  )
  return {'eval': evaluated, 'loss': metrics['loss'], 'train': trained}


def check_pruned_is_masked(net, side):
  rng = np.random.default_rng(0)
  shape = (side, side, 3)
  graph = walk.graph_of(net, shape)
  variables = randomised(net, shape, rng)
  images = jnp.asarray(rng.normal(size=(BATCH, *shape)))
  labels = jnp.asarray(rng.integers(0, 10, BATCH))
  masked = jax.jit(partial(measured, net=net, stage=MASKED), **FAST_COMPILE)
  for pattern, keep in patterns(graph.gates, rng).items():
    signs = {
      f'{gate}/g': np.where(np.isin(ids, keep[gate]), 1.0, -1.0)
      for gate, ids in graph.gates.items()
    }
    want = masked(variables, trees.unflatten(signs), images, labels)
    small = surgery.with_keep(net, keep)
    after = walk.graph_of(small, shape)
    gate_logits = jax.tree.map(
      lambda a: np.zeros(a.shape), after.shapes.get('gates', {})
    )
    pruned = jax.jit(partial(measured, net=small, stage=OPEN), **FAST_COMPILE)
    got = pruned(
      surgery.prune_variables(variables, graph, after),
      gate_logits,
      images,
      labels,
    )
    assert not after.cut_off_by or pattern == 'one gate empty'
    assert all(np.prod(a.shape) for a in jax.tree.leaves(after.shapes))
    check_equal(got, want, pattern)


def check_equal(got, want, pattern):
  for key, value in want.items():
    worst = float(abs(got[key] - value).max())
    largest = float(abs(value).max())
    assert worst <= 1e-7 * largest, f'{pattern}, {key}: {worst}'
    if key == 'loss':
      continue
    # Logits hardly change with the image if a single channel is left of each
    # layer; where they do, the difference is small against that, too.
    spread = float(abs(value - value.mean(0)).max())
    assert spread > 1e-6 * largest or pattern != 'half'
    if spread > 1e-9 * largest:
      assert worst <= 1e-5 * spread, f'{pattern}, {key}: {worst}, {spread}'


@pytest.mark.slow
@pytest.mark.usefixtures('float64', 'native_ops')
@pytest.mark.parametrize(
  'name',
  [
    pytest.param(n, marks=[pytest.mark.long] * n.endswith('_cifar'))
    for n in SHALLOW
  ],
)
def test_pruned_network_is_the_masked_network(name):
  side, fields = SHALLOW[name]
  check_pruned_is_masked(build(name, **fields), side)


@pytest.mark.long
@pytest.mark.usefixtures('float64', 'native_ops')
@pytest.mark.parametrize('name', DEEP)
def test_pruned_network_is_the_masked_network_in_full_depth(name):
  check_pruned_is_masked(build(name), DEEP[name])


def couplings(net, side):
  """What couples the layers of a network, without their number."""

  def kind(path):
    return re.sub(r'block\d+_\d+|gate\d+_\d+|conv\d+_\d+', '#', path)

  found = set()
  for path, layer in walk.graph_of(net, (side, side, 3)).layers.items():
    found.add(
      (
        kind(path),
        tuple(sorted({kind(gate) for gate in layer.in_gates})),
        layer.out_gate and kind(layer.out_gate),
        layer.in_ids is None,  # depthwise
        len(layer.in_gates),
      )
    )
  return found


@pytest.mark.parametrize('name', SHALLOW)
def test_few_blocks_have_every_kind_of_coupling(name):
  side, fields = SHALLOW[name]
  shallow = build(name, **fields)
  deep = build(name, width=shallow.width)
  assert couplings(shallow, side) == couplings(deep, DEEP[name])
  if name == 'mobilenet_v2':
    assert ('stem_conv', (), '#/hidden', False, 0) in couplings(shallow, side)


@pytest.mark.parametrize(
  'name',
  [
    *('vgg7_digits', 'resnet8_digits', 'mobilenet_v2_digits'),
    pytest.param('proxyless_digits', marks=pytest.mark.long),
  ],
)
def test_float32_agrees_to_rounding(name):
  """What a run sees: float32, full width, eval and train mode, 1e-5."""
  rng = np.random.default_rng(1)
  net, shape = models.get(name).build(classes=10), (8, 8, 3)
  graph = walk.graph_of(net, shape)
  variables = jax.tree.map(np.float32, randomised(net, shape, rng))
  images = rng.normal(size=(64, *shape)).astype(np.float32)
  applied = partial(jax.jit, static_argnames=('train', 'mutable'))
  of_masked = applied(net.apply)
  keeps = patterns(graph.gates, rng)
  keeps.pop('almost none', None)
  for pattern, keep in keeps.items():
    masked = {**variables, 'gates': masks(graph.gates, keep)}
    small = surgery.with_keep(net, keep)
    after = walk.graph_of(small, shape)
    pruned = surgery.prune_variables(masked, graph, after)
    # BatchNorm of a constant map divides rounding errors by sqrt(epsilon): if
    # no image gets through, only float64 can compare train modes.
    for train in (False,) if after.cut_off_by else (False, True):
      (want, _), (got, _) = (
        f(v, images, train=train, mutable='batch_stats')
        for f, v in ((of_masked, masked), (applied(small.apply), pruned))
      )
      np.testing.assert_allclose(
        got, want, rtol=0, atol=1e-5 * abs(want).max(), err_msg=pattern
      )


def test_pruning_twice_is_pruning_once():
  """A second search prunes an already pruned network further."""
  rng = np.random.default_rng(2)
  net, shape = models.get('mobilenet_v2_digits').build(classes=10), (8, 8, 3)
  variables = randomised(net, shape, rng)
  full = walk.graph_of(net, shape)
  once = patterns(full.gates, rng)['half']
  twice = {gate: ids[::2] for gate, ids in once.items()}
  middle, last = (
    walk.graph_of(surgery.with_keep(net, keep), shape) for keep in (once, twice)
  )
  in_between = surgery.prune_variables(variables, full, middle)
  jax.tree.map(
    np.testing.assert_array_equal,
    surgery.prune_variables(in_between, middle, last),
    surgery.prune_variables(variables, full, last),
  )
