"""A cut network is the hard-gated network: same gate_logits, same training.

In float64, so that rounding neither hides nor feigns a difference, on all seven
networks in full depth (narrower, on small images).
"""

from functools import partial
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dnal_jax import models, trees
from dnal_jax.data.batches import Batch
from dnal_jax.graph import difference, surgery, walk
from dnal_jax.search import channel_gates
from dnal_jax.training.optimizer import ParamGroup
from dnal_jax.training.schedule import LearningRate
from dnal_jax.training.stages import Stage
from dnal_jax.training.step import train_step
from dnal_jax.training.train_state import create_train_state

BATCH = 12
# Image sides that leave several positions to the last convolutions.
SIDES = {
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
# sigmoid(1e4 * s) is 0 or 1 to the bit for s = -1, 1: these gates are hard.
HARD = Stage('hard', 1, WEIGHTS, delta_end=1e4)
OPEN = Stage('open', 1, WEIGHTS)


@pytest.fixture
def float64():
  with jax.enable_x64(True):
    yield


def randomised(net, shape, rng):
  """Variables with BatchNorms that are far from the identity they start as."""
  shapes = trees.flatten(walk.graph_of(net, shape).shapes)
  flat = {}
  for path, leaf in shapes.items():
    noise = rng.normal(size=leaf.shape)
    if path.endswith('kernel'):
      fan_in = np.prod(leaf.shape[:-1])
      flat[path] = noise * np.sqrt(2 / fan_in)
    elif path.endswith(('scale', 'var')):
      flat[path] = np.exp(0.3 * noise)
    else:
      flat[path] = 0.3 * noise
  return trees.unflatten(flat)


def patterns(gates, rng):
  """{name: {gate: kept ids}}: half, almost none (but one at least, so that the
  image matters), and half with one site empty."""
  keeps = {
    name: {
      gate: tuple(i for i in ids if rng.random() < share) or ids[-1:]
      for gate, ids in gates.items()
    }
    for name, share in (('half', 0.5), ('almost none', 0.01))
  }
  emptied = list(gates)[len(gates) // 2]
  keeps['one site empty'] = {**keeps['half'], emptied: ()}
  if 'block1_2/5x5_e3/out' in gates:  # a supernet
    gone = re.compile(r'block1_2/.*|block\d_1/([35]x._e3|7x7_e6)/out')
    keeps = {  # programs of so many layers compile for minutes
      'half, whole candidates and a whole block closed': {
        gate: () if gone.fullmatch(gate) else ids
        for gate, ids in keeps['half'].items()
      }
    }
  return keeps


def measured(variables, gate_logits, images, labels, *, net, stage):
  """Logits in eval mode; the loss of a train step; after it, gate_logits in train
  mode, which every weight, statistic and gradient has a part in.

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


@pytest.mark.slow
@pytest.mark.usefixtures('float64')
@pytest.mark.parametrize('name', SIDES)
def test_cut_network_is_the_gated_network(name, monkeypatch):
  def native(*args, cpu, default):  # one operation to compile, not 49
    return default(*args)

  monkeypatch.setattr(jax.lax, 'platform_dependent', native)
  rng = np.random.default_rng(0)
  shape = (SIDES[name], SIDES[name], 3)
  net = models.get(name).build(classes=10, width=0.25)
  graph = walk.graph_of(net, shape)
  variables = randomised(net, shape, rng)
  images = jnp.asarray(rng.normal(size=(BATCH, *shape)))
  labels = jnp.asarray(rng.integers(0, 10, BATCH))
  gated = jax.jit(partial(measured, net=net, stage=HARD), **FAST_COMPILE)
  for pattern, keep in patterns(graph.gates, rng).items():
    signs = {
      f'{gate}/g': np.where(np.isin(ids, keep[gate]), 1.0, -1.0)
      for gate, ids in graph.gates.items()
    }
    want = gated(variables, trees.unflatten(signs), images, labels)
    small = surgery.with_keep(net, keep)
    after = walk.graph_of(small, shape)
    cut = surgery.cut(variables, graph, after)
    gate_logits = jax.tree.map(
      lambda a: np.zeros(a.shape), after.shapes.get('gates', {})
    )
    ours = jax.jit(partial(measured, net=small, stage=OPEN), **FAST_COMPILE)
    got = ours(cut, gate_logits, images, labels)
    assert not after.cut_off_by or pattern == 'one site empty'
    for key, value in want.items():
      worst = float(abs(got[key] - value).max())
      largest = float(abs(value).max())
      assert worst <= 1e-7 * largest, f'{pattern}, {key}: {worst}'
      if key == 'loss':
        continue
      # Logits hardly change with the image where a single channel is left of
      # each layer; where they do, the difference is small against that, too.
      spread = float(abs(value - value.mean(0)).max())
      assert spread > 1e-6 * largest or pattern != 'half'
      if spread > 1e-9 * largest:
        assert worst <= 1e-5 * spread, f'{pattern}, {key}: {worst}, {spread}'
    assert all(np.prod(a.shape) for a in jax.tree.leaves(after.shapes))


@pytest.mark.parametrize(
  'name',
  ['vgg7_digits', 'resnet8_digits', 'mobilenet_v2_digits', 'proxyless_digits'],
)
def test_float32_agrees_to_rounding(name):
  """What a run sees: float32, full width, eval and train mode, 1e-5."""
  rng = np.random.default_rng(1)
  net, shape = models.get(name).build(classes=10), (8, 8, 3)
  graph = walk.graph_of(net, shape)
  variables = jax.tree.map(np.float32, randomised(net, shape, rng))
  images = rng.normal(size=(64, *shape)).astype(np.float32)
  for pattern, keep in patterns(graph.gates, rng).items():
    gates = trees.unflatten(
      {
        f'{gate}/g': np.isin(ids, keep[gate]).astype(np.float32)
        for gate, ids in graph.gates.items()
      }
    )
    small = surgery.with_keep(net, keep)
    after = walk.graph_of(small, shape)
    cut = surgery.cut({**variables, 'gates': gates}, graph, after)
    # BatchNorm over a constant map divides rounding errors by sqrt(epsilon);
    # where no image gets through, only float64 can compare train modes.
    for train in (False,) if after.cut_off_by else (False, True):
      want, got = (
        jax.jit(
          lambda v, x, n=n, train=train: n.apply(
            v, x, train=train, mutable=['batch_stats']
          )[0]
        )(v, images)
        for n, v in ((net, {**variables, 'gates': gates}), (small, cut))
      )
      np.testing.assert_allclose(
        got, want, rtol=0, atol=1e-5 * abs(want).max(), err_msg=pattern
      )


def test_cutting_twice_is_cutting_once():
  """A second search round cuts an already compact network further."""
  rng = np.random.default_rng(2)
  net, shape = models.get('mobilenet_v2_digits').build(classes=10), (8, 8, 3)
  variables = randomised(net, shape, rng)
  graph = walk.graph_of(net, shape)
  once = patterns(graph.gates, rng)['half']
  twice = {gate: ids[::2] for gate, ids in once.items()}
  graphs = {
    key: walk.graph_of(surgery.with_keep(net, keep), shape)
    for key, keep in (('once', once), ('twice', twice))
  }
  direct = surgery.cut(variables, graph, graphs['twice'])
  middle = surgery.cut(variables, graph, graphs['once'])
  jax.tree.map(
    np.testing.assert_array_equal,
    surgery.cut(middle, graphs['once'], graphs['twice']),
    direct,
  )


def test_a_closed_branch_vanishes_and_a_closed_trunk_is_named():
  net = models.get('resnet8_digits').build(classes=10)
  shape = (8, 8, 1)
  gates = walk.graph_of(net, shape).gates
  branch = walk.graph_of(
    surgery.with_keep(net, {**gates, 'block2_1/out': ()}), shape
  )
  assert 'block2_1' not in branch.shapes['params']
  assert branch.cut_off_by == ()
  trunk = walk.graph_of(surgery.with_keep(net, {**gates, 'stem': ()}), shape)
  assert trunk.cut_off_by == ('stem',)


def test_stem_that_a_shortcut_reads_is_not_cut():
  """At width 1/4 the first block of MobileNetV2 gains a shortcut."""
  for width, kept in ((1.0, 1), (0.25, 8)):
    net = models.get('mobilenet_v2').build(classes=10, width=width)
    gates = walk.graph_of(net, (32, 32, 3)).gates
    small = surgery.with_keep(net, {**gates, 'block1_1/hidden': (0,)})
    graph = walk.graph_of(small, (32, 32, 3))
    assert len(graph.sites['stem_conv'].outs) == kept


def test_first_difference_names_the_gate():
  rng = np.random.default_rng(3)
  net, shape = models.get('vgg7_digits').build(classes=10), (8, 8, 1)
  variables = randomised(net, shape, rng)
  images = jnp.asarray(rng.normal(size=(4, *shape)), jnp.float32)
  graph = walk.graph_of(net, shape)
  small = surgery.with_keep(net, graph.gates)
  cut = surgery.cut(variables, graph, graph)
  compare = partial(difference.first_difference, net, variables, small)
  assert compare(cut, images, 1e-4) is None
  cut['params']['conv2_2']['bias'] = cut['params']['conv2_2']['bias'] + 0.1
  cut['batch_stats']['conv2_2']['bn']['mean'] += 0.3
  assert compare(cut, images, 1e-4) == 'gate2_2'
