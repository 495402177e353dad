"""One step of each stage: what it updates, what it leaves, exact figures."""

import dataclasses
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from steps import FINETUNE, SEARCH, WARMUP, setting, start, step_of

from dnal_jax import trees
from dnal_jax.data.batches import Batch
from dnal_jax.training.losses import cross_entropy
from dnal_jax.training.stages import Stage
from dnal_jax.training.step import eval_step

TRAINS = {
  'warmup': 'params/',
  'search': ('gates/', 'params/head/'),
  'finetune': 'params/',
}


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
    assert same != trained, f'{path}: trained {trained}, unchanged {same}'
  moved = jax.tree.map(
    lambda a, b: not np.array_equal(a, b), state.batch_stats, after.batch_stats
  )
  assert all(jax.tree.leaves(moved)), 'running statistics move in every stage'


def test_penalty_pulls_gate_logits_down_by_its_gradient():
  """The penalty alone (the step without it subtracted) moves every gate logit
  by -lr * lambda / 4 in one step of SGD."""
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
  """With decay min(0.15, (1 + t) / (10 + t)) in step t, from the initial
  weights."""
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
  """The first step of plain momentum is lr * g, of Nesterov's
  lr * (1 + 0.9) * g."""
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


# Loss, sum of hits, sum of gates; then the sums of the absolute values of all
# parameters, gate logits and running statistics after one step. Update these
# only if the method, the initialisation or the data flow is meant to change,
# and say so in the commit.
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
  """Compared with one step for each part."""
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
    total = sum(of_part[key] for _, of_part in alone)
    np.testing.assert_allclose(metrics[key], total, rtol=1e-5)
