"""One step of each stage: what moves, what must not, and a dozen numbers."""

import dataclasses
from functools import partial
import re

from flax import linen
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dnal_jax import models, nn, trees
from dnal_jax.data.batches import Batch
from dnal_jax.training.losses import cross_entropy
from dnal_jax.training.optimizer import ParamGroup
from dnal_jax.training.schedule import LearningRate
from dnal_jax.training.stages import Stage
from dnal_jax.training.step import eval_step, train_step
from dnal_jax.training.train_state import create_train_state

RATE = LearningRate(0.1)
WARMUP = Stage('warmup', 2, {'w': ParamGroup('params/.*', RATE, 0.9, 1e-4)})
SEARCH = Stage(
  'search',
  2,
  {
    'gates': ParamGroup('gates/.*', RATE),
    'head': ParamGroup('params/head/.*', RATE),
  },
  delta_end=100.0,
  penalty=1e-3,
)
FINETUNE = Stage(
  'finetune', 2, {'w': ParamGroup('params/.*', RATE)}, gate_threshold=0.9
)
TRAINS = {
  'warmup': 'params/',
  'search': ('gates/', 'params/head/'),
  'finetune': 'params/',
}


def setting(name='vgg7_digits', side=8):
  """Network, batch and variables, the same in every process."""
  net = models.get(name).build(classes=10)
  rng = np.random.default_rng(0)
  images = rng.normal(size=(16, side, side, 3)).astype(np.float32)
  batch = Batch(images, rng.integers(0, 10, 16), np.ones(16, np.float32))
  variables = jax.jit(net.init)(jax.random.key(0), images[:1])
  return net, batch, variables


def start(stage, variables):
  gate_logits = jax.tree.map(jnp.zeros_like, variables['gates'])
  return create_train_state(
    stage, variables['params'], gate_logits, variables['batch_stats']
  )


def step_of(net, stage):
  """(state, batch) -> what a step in the first epoch of the stage gives."""
  return partial(
    train_step,
    hyperparams=stage.hyperparams(0),
    net=net,
    stage=stage,
    steps_per_epoch=5,
  )


@pytest.mark.parametrize(
  'stage', [WARMUP, SEARCH, FINETUNE], ids=lambda s: s.name
)
@pytest.mark.parametrize('name', ['vgg7_digits', 'mobilenet_v2_digits'])
def test_frozen_leaves_do_not_move_by_a_bit(stage, name):
  net, batch, variables = setting(name)
  state = start(stage, variables)
  after, _ = jax.jit(step_of(net, stage))(state, batch)
  leaves = [
    trees.flatten({'params': s.params, 'gates': s.gate_logits})
    for s in (state, after)
  ]
  for path, before in leaves[0].items():
    same = np.array_equal(before, leaves[1][path])
    trained = path.startswith(TRAINS[stage.name])
    assert same != trained, f'{path} {"stood" if same else "moved"}'
  moved = jax.tree.map(
    lambda a, b: not np.array_equal(a, b), state.batch_stats, after.batch_stats
  )
  assert all(jax.tree.leaves(moved)), 'running statistics move in every stage'


def kernel_gradients(stage):
  """How many convolutions or products of the compiled step give a kernel,
  [3, 3, I, O] or as a matrix [9 I, O] or, of split taps, [3 I, 3 O]; chunks
  and their rest count once."""
  net, batch, variables = setting(side=32)
  step = jax.jit(step_of(net, stage))
  text = step.lower(start(stage, variables), batch).compile().as_text()
  found = re.findall(r'f32\[([\d,]+)\]\S* (?:convolution|dot)\(', text)
  assert found, 'no convolution at all: has the text another form?'
  shapes = [sorted(map(int, dims.split(','))) for dims in found]
  kernels = [
    leaf.shape
    for path, leaf in trees.flatten(variables['params']).items()
    if path.endswith('kernel') and leaf.ndim == 4
  ]
  return sum(
    any(
      sorted(shape) in shapes
      for shape in (kernel, (9 * inputs, outputs), (3 * inputs, 3 * outputs))
    )
    for kernel in kernels
    for inputs, outputs in [kernel[2:]]
  )


def test_search_step_has_no_gradient_of_kernels():
  assert kernel_gradients(SEARCH) == 0
  assert kernel_gradients(WARMUP) == 6  # one for every layer


def test_residual_sums_are_not_computed_again():
  """XLA on CPU may repeat what is cheap in every reader of it; one sum repeated
  is all sums before it repeated, by an operation with as many operands."""
  net = models.get('resnet8_digits').build(classes=10, blocks=(8, 1, 1))
  _, batch, _ = setting()
  variables = jax.jit(net.init)(jax.random.key(0), batch.image)
  step = jax.jit(step_of(net, WARMUP))
  text = step.lower(start(WARMUP, variables), batch).compile().as_text()
  operands = [
    names.count('%')
    for shape, names in re.findall(r' = (.+?) fusion\((.*?)\), kind', text)
    # Whether all gradients are finite is one number, of as many.
    if not shape.startswith(('f32[]', 'pred[]'))
  ]
  assert len(operands) > 100
  assert max(operands) < 30


def test_penalty_pulls_logits_down_by_its_gradient():
  """With lambda alone (cross-entropy's part subtracted) one step of SGD moves
  every logit by -lr * lambda / 4."""
  net, batch, variables = setting()
  moved = []
  for penalty in (0.0, 0.5):
    stage = Stage('s', 2, SEARCH.train, delta_end=100.0, penalty=penalty)
    step = jax.jit(step_of(net, stage))
    state, metrics = step(start(stage, variables), batch)
    moved.append(state.gate_logits)
    assert float(metrics['gate_sum']) == 448 / 2
  difference = jax.tree.map(lambda a, b: a - b, moved[1], moved[0])
  for leaf in jax.tree.leaves(difference):
    np.testing.assert_allclose(leaf, -0.1 * 0.5 / 4, rtol=1e-3)


def test_eval_step_ignores_padding():
  net, batch, variables = setting()
  evaluate = jax.jit(partial(eval_step, net=net))
  whole, logits = evaluate(variables, batch)
  weight = np.ones(16, np.float32)
  weight[10:] = 0
  part, _ = evaluate(variables, batch._replace(weight=weight))
  best = np.argsort(-np.asarray(logits), -1)
  label = batch.label[:, None]
  assert float(whole['images']) == 16
  assert float(part['images']) == 10
  assert float(part['top1']) == (best[:, :1] == label)[:10].sum()
  assert float(whole['top5']) == (best[:, :5] == label).any(-1).sum()


def test_label_smoothing_by_hand():
  """-sum over classes of target * log p, the target 0.9 + 0.1/4 and 0.1/4."""
  logits = np.array([[2.0, 0.0, -1.0, 0.5]])
  p = np.exp(logits[0]) / np.exp(logits[0]).sum()
  target = np.full(4, 0.1 / 4)
  target[2] += 0.9
  got = cross_entropy(logits, np.array([2]), 0.1)
  assert float(got[0]) == pytest.approx(-(target * np.log(p)).sum(), rel=1e-6)


def steps_of(stage, n):
  net, batch, variables = setting()
  step = jax.jit(step_of(net, stage))
  states = [start(stage, variables)]
  for _ in range(n):
    states.append(step(states[-1], batch)[0])
  return states


def test_average_is_the_recurrence_and_the_result():
  """decay min(0.15, (1 + t) / (10 + t)) in step t, from the first weights."""
  states = steps_of(dataclasses.replace(WARMUP, ema=0.15), 3)
  plain = steps_of(WARMUP, 3)[-1]
  jax.tree.map(np.testing.assert_array_equal, states[-1].params, plain.params)
  want = states[0].params
  for t, state in enumerate(states[1:]):
    decay = min(0.15, (1 + t) / (10 + t))
    want = jax.tree.map(
      lambda a, b, d=decay: d * a + (1 - d) * b, want, state.params
    )
  params, batch_stats = states[-1].result
  close = partial(np.testing.assert_allclose, rtol=1e-5, atol=1e-7)
  jax.tree.map(close, params, want)
  moved = trees.flatten(batch_stats)['conv1_1/bn/mean']
  last = trees.flatten(states[-1].batch_stats)['conv1_1/bn/mean']
  assert not np.array_equal(moved, last)
  params, batch_stats = plain.result
  assert params is plain.params
  assert batch_stats is plain.batch_stats


def test_nesterov_looks_ahead():
  """The first step of heavy ball is lr * g, of Nesterov lr * (1 + 0.9) * g."""
  group = WARMUP.train['w']
  nesterov = dataclasses.replace(group, nesterov=True)
  changes = []
  for g in (group, nesterov):
    before, after = steps_of(dataclasses.replace(WARMUP, train={'w': g}), 1)
    leaves = (
      trees.flatten(s.params)['conv2_1/kernel'] for s in (after, before)
    )
    changes.append(np.subtract(*leaves))
  np.testing.assert_allclose(changes[1], 1.9 * changes[0], rtol=1e-3, atol=1e-8)


def test_bfloat16_step_keeps_32_bits_of_what_lasts():
  net, batch, variables = setting()
  step = jax.jit(step_of(net, WARMUP))
  half = batch._replace(image=jnp.asarray(batch.image, jnp.bfloat16))
  after, metrics = step(start(WARMUP, variables), half)
  dtypes = {str(a.dtype) for a in jax.tree.leaves(after)}
  assert dtypes == {'float32', 'int32'}
  _, exact = step(start(WARMUP, variables), batch)
  assert metrics['loss'].dtype == jnp.float32
  assert float(metrics['loss']) != float(exact['loss'])
  np.testing.assert_allclose(metrics['loss'], exact['loss'], rtol=0.02)


@pytest.mark.parametrize('train', [False, True])
@pytest.mark.parametrize(
  'name',
  [
    *('vgg7_digits', 'resnet8_digits', 'resnet50', 'vgg16_cifar'),
    *('mobilenet_v2_digits', 'proxyless_digits'),
  ],
)
def test_every_layer_computes_in_the_dtype_of_the_images(name, train):
  variant = models.get(name)
  net, outs = variant.build(classes=10), []
  image = jnp.zeros((2, variant.image, variant.image, 3), jnp.bfloat16)
  variables = jax.eval_shape(net.init, jax.random.key(0), image)
  with linen.intercept_methods(partial(_record_dtype, outs)):
    jax.eval_shape(
      partial(net.apply, train=train, mutable=['batch_stats']), variables, image
    )
  *inside, gate_logits = outs
  assert set(inside) == {jnp.dtype('bfloat16')}
  assert gate_logits == jnp.float32


def _record_dtype(outs, call, args, kwargs, context):
  out = call(*args, **kwargs)
  if isinstance(context.module, nn.ConvBn | nn.Dense):
    outs.append(out.x.dtype)
  return out


# Loss, sum of hits, penalty; then sums over all parameters, gate_logits and running
# variances after one step. Update these if the method, the initialisation or
# the data flow is meant to change, and say so in the commit; if they change by
# themselves, the arithmetic has.
GOLDEN = {
  'warmup': (37.14437, 2, 224.0, 11097.456, 0.0, 437.8347),
  'search': (36.93555, 2, 224.0, 11094.864, 0.3714976, 416.2456),
}


@pytest.mark.parametrize('stage', [WARMUP, SEARCH], ids=lambda s: s.name)
def test_golden_step(stage):
  net, batch, variables = setting()
  state, metrics = jax.jit(step_of(net, stage))(start(stage, variables), batch)

  def total(tree):
    return float(sum(abs(a).sum() for a in jax.tree.leaves(tree)))

  got = (
    float(metrics['loss']),
    int(metrics['correct']),
    float(metrics['gate_sum']),
    total(state.params),
    total(state.gate_logits),
    total(state.batch_stats),
  )
  np.testing.assert_allclose(got, GOLDEN[stage.name], rtol=1e-4)


@pytest.mark.parametrize('stage', [WARMUP, SEARCH], ids=lambda s: s.name)
def test_parts_of_equal_rows_give_the_step_of_the_whole(stage):
  """Four parts with the same rows have the moments of the whole batch."""
  net, batch, variables = setting()
  batch = Batch(*(np.repeat(a[:4], 4, axis=0) for a in batch))
  state = start(stage, variables)
  step = step_of(net, stage)
  whole, parts = (
    jax.jit(partial(step, grad_accum_steps=n))(state, batch) for n in (1, 4)
  )
  jax.tree.map(
    partial(np.testing.assert_allclose, rtol=1e-4, atol=1e-5), whole, parts
  )


def test_gradients_of_parts_are_averaged():
  """By the definition, one part after the other."""
  net, batch, variables = setting()
  state = start(WARMUP, variables)
  step = step_of(net, WARMUP)
  after, metrics = jax.jit(partial(step, grad_accum_steps=2))(state, batch)
  alone = [
    jax.jit(step)(state, Batch(*(a[i::2] for a in batch))) for i in range(2)
  ]

  def check(together, a, b):  # a step is linear in the gradients
    np.testing.assert_allclose(together, (a + b) / 2, rtol=1e-4, atol=1e-6)

  for part in ('params', 'batch_stats'):
    jax.tree.map(
      check, *(getattr(s, part) for s in (after, *(a[0] for a in alone)))
    )
  for key in ('loss', 'correct'):
    total = sum(told[key] for _, told in alone)
    np.testing.assert_allclose(metrics[key], total, rtol=1e-5)


def test_parts_take_less_memory():
  net, batch, variables = setting()
  batch = Batch(*(np.repeat(a, 16, axis=0) for a in batch))
  state = start(WARMUP, variables)
  step = step_of(net, WARMUP)
  whole, parts = (
    jax.jit(partial(step, grad_accum_steps=n)).lower(state, batch).compile()
    for n in (1, 8)
  )
  sizes = [c.memory_analysis().temp_size_in_bytes for c in (whole, parts)]
  assert sizes[1] < sizes[0] / 3
