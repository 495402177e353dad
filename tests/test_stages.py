"""Schedules, parameter groups, and what a list of stages must satisfy."""

import dataclasses
import math

import pytest

from dnal_jax import errors
from dnal_jax.search.budget import Target
from dnal_jax.training import stages
from dnal_jax.training.optimizer import (
  ParamGroup,
  assign_groups,
  make_optimizer,
)
from dnal_jax.training.schedule import LearningRate
from dnal_jax.training.stages import Stage

PATHS = [
  'params/conv1/kernel',
  'params/conv1/bn/scale',
  'params/head/logits/kernel',
  'params/head/logits/bias',
  'gates/gate1/g',
]


def rates(lr, epochs, *at):
  """The rates of a stage of so many epochs."""
  return [float(lr(epoch, lr.coefficients(epochs))) for epoch in at]


def test_constant_and_steps():
  constant = LearningRate(base=0.01)
  assert rates(constant, 10, 7.5) == pytest.approx([0.01])
  steps = LearningRate(base=0.01, schedule='steps', drops=(10 / 70, 40 / 70))
  got = rates(steps, 70, 0, 9.99, 10, 39.9, 40, 69)
  want = [1e-2, 1e-2, 1e-3, 1e-3, 1e-4, 1e-4]
  assert got == pytest.approx(want, rel=1e-5)


def test_cosine_with_the_published_offsets():
  """MobileNetV2 warms up to half its rate and fine-tunes from position 30 of
  120; the supernet's warm-up of 100 epochs of 150 ends at a quarter."""
  warmup = LearningRate(base=0.1, schedule='cosine', end=1 / 2)
  assert rates(warmup, 80, 80) == pytest.approx([0.05])
  supernet = LearningRate(base=0.05, schedule='cosine', end=100 / 150)
  assert rates(supernet, 100, 100) == pytest.approx([0.0125])
  finetune = LearningRate(base=0.1, schedule='cosine', begin=30 / 120)
  begin = 0.05 * (1 + math.cos(math.pi / 4))
  got = rates(finetune, 90, 0, 90, 91)
  assert got == pytest.approx([begin, 0, 0], abs=1e-8)


@pytest.mark.parametrize(
  'lr',
  [
    LearningRate(0.1, 'cosine', begin=0.25, end=0.75),
    LearningRate(0.1, 'steps', drops=(0.2, 0.5)),
  ],
  ids=lambda lr: lr.schedule,
)
def test_a_curve_is_as_long_as_its_stage(lr):
  """A tenth of the epochs have the rates of every tenth."""
  long, short = rates(lr, 50, *range(0, 50, 10)), rates(lr, 5, *range(5))
  assert short == pytest.approx(long)
  assert len({*short}) > 2


def test_coefficients_of_another_schedule():
  """They are arguments of a compiled step, which then serves every schedule of
  the kind."""
  one = LearningRate(base=0.1, schedule='cosine', end=1 / 2)
  other = LearningRate(base=0.3, schedule='cosine', begin=1 / 4)
  for epoch in (0, 7.5, 80):
    of_other = other.coefficients(90)
    assert float(one(epoch, of_other)) == float(other(epoch, of_other))


def test_scaled_rates_are_multiplied_and_nothing_else():
  lr = LearningRate(base=0.1, schedule='cosine', end=1 / 2)
  stage = Stage('s', 80, {'w': ParamGroup('params/.*', lr, 0.8, 1e-4)}, ema=0.9)
  half = stage.scaled(0.5)
  assert half.hyperparams(0).rates['w']['base'] == 0.05
  of_half = rates(half.train['w'].lr, 80, 40)
  assert of_half == [rate / 2 for rate in rates(lr, 80, 40)]
  assert half.scaled(2.0) == stage


@pytest.mark.parametrize(
  ('epochs', 'factor', 'want'),
  [(10, 0.1, 1), (10, 0.01, 1), (80, 0.3, 24), (10, 2.0, 20), (0, 0.5, 0)],
)
def test_resized(epochs, factor, want):
  stage = Stage('s', epochs, {}, delta_end=None, gate_threshold=0.9)
  assert stage.resized(factor) == dataclasses.replace(stage, epochs=want)


def group(match):
  return ParamGroup(match, LearningRate(0.1))


def test_groups_name_what_trains():
  groups = {'gates': group('gates/.*'), 'head': group('params/head/.*')}
  assert assign_groups(groups, PATHS) == {
    'params/head/logits/kernel': 'head',
    'params/head/logits/bias': 'head',
    'gates/gate1/g': 'gates',
  }


def test_pattern_that_matches_nothing():
  groups = {'head': group('params/classifier/.*')}
  with pytest.raises(errors.UserError) as raised:
    assign_groups(groups, PATHS)
  assert "'params/classifier/.*' of group 'head'" in str(raised.value)
  assert "'params/head/logits/kernel'" in str(raised.value)


def test_patterns_that_overlap():
  groups = {'a': group('params/.*'), 'b': group('.*/bias')}
  with pytest.raises(errors.UserError, match=r"/bias' is in .*'a' and 'b'"):
    assign_groups(groups, PATHS)


def test_optimizer_is_pytorchs_sgd_per_group():
  """Two steps by hand: L2 is added to the gradient, and the rate multiplies
  the momentum."""
  stage = Stage(
    's', 1, {'w': ParamGroup('params/.*', LearningRate(0.1), 0.9, 0.01)}
  )
  paths = ['params/w']
  tx = make_optimizer(stage.train, paths, 1, stage.hyperparams(0).rates)
  w, velocity = 2.0, 0.0
  leaf = {'params/w': 2.0}
  state = tx.init(leaf)
  for gradient in (0.5, -0.25):
    velocity = 0.9 * velocity + gradient + 0.01 * w
    w -= 0.1 * velocity
    updates, state = tx.update({'params/w': gradient}, state, leaf)
    leaf = {'params/w': leaf['params/w'] + updates['params/w']}
    assert float(leaf['params/w']) == pytest.approx(w, rel=1e-6)


@pytest.mark.parametrize(
  ('change', 'message'),
  [
    ({'epochs': 0}, 'epochs is 0; it must be at least 1'),
    ({'epochs': -3}, 'epochs is -3'),
    ({'penalty': -1.0}, 'penalty is -1.0; it must be at least 0'),
    ({'delta_end': 1.0}, 'delta_end is 1.0; it must be above 1'),
    ({'gate_threshold': 1.5}, r'gate_threshold is 1.5; .* in \(0, 1\)'),
    ({'gate_threshold': 0.9, 'epochs': -1}, 'must be at least 0'),
    (
      {'delta_end': 9.0, 'penalty': 0.1, 'target': Target(macs=0.5)},
      'penalty is 0.1 and target is macs 0.5; a search has one of them',
    ),
    ({'target': Target(params=9)}, 'target is params 9, but .* set delta_end'),
  ],
)
def test_a_stage_made_in_python_is_checked(change, message):
  stage = Stage('s', 5, {})
  with pytest.raises(ValueError, match=message):
    dataclasses.replace(stage, **change)


def test_pruning_needs_a_search_before_it():
  warmup = Stage('warmup', 1, {})
  search = Stage('search', 1, {}, delta_end=1e4)
  finetune = Stage('finetune', 0, {}, gate_threshold=0.9)
  stages.validate((warmup, search, finetune))
  stages.validate((warmup, search, finetune, search, finetune))
  for order in ((finetune,), (warmup, search, finetune, finetune)):
    with pytest.raises(errors.UserError, match='no stage before it searches'):
      stages.validate(order)
