"""Schedules, parameter groups, and what a list of stages must satisfy."""

import dataclasses
import math

import pytest

from dnal_jax import errors
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


def test_constant_and_steps():
  constant = LearningRate(base=0.01)
  assert float(constant(7.5)) == pytest.approx(0.01)
  steps = LearningRate(base=0.01, schedule='steps', drops=(10.0, 40.0))
  got = [float(steps(e)) for e in (0, 9.99, 10, 39.9, 40, 69)]
  want = [1e-2, 1e-2, 1e-3, 1e-3, 1e-4, 1e-4]
  assert got == pytest.approx(want, rel=1e-5)


def test_cosine_with_the_published_offsets():
  """MobileNetV2 warms up to half its rate and fine-tunes from position 30 of
  120; the supernet's warm-up of 100 epochs of 150 ends at a quarter."""
  warmup = LearningRate(base=0.1, schedule='cosine', horizon=160)
  assert float(warmup(80)) == pytest.approx(0.05)
  supernet = LearningRate(base=0.05, schedule='cosine', horizon=150)
  assert float(supernet(100)) == pytest.approx(0.0125)
  finetune = LearningRate(base=0.1, schedule='cosine', horizon=120, start=30)
  begin = 0.05 * (1 + math.cos(math.pi / 4))
  assert float(finetune(0)) == pytest.approx(begin)
  assert float(finetune(90)) == pytest.approx(0, abs=1e-8)
  assert float(finetune(91)) == pytest.approx(0, abs=1e-8)


def test_coefficients_replace_its_own():
  """As arguments of a compiled step, which then serves every such schedule."""
  one = LearningRate(base=0.1, schedule='cosine', horizon=160)
  other = LearningRate(base=0.3, schedule='cosine', horizon=120, start=30)
  for epoch in (0, 7.5, 80):
    assert float(one(epoch, other.coefficients)) == float(other(epoch))
    assert float(one(epoch, one.coefficients)) == float(one(epoch))


def test_scaled_rates_are_multiplied_and_nothing_else():
  lr = LearningRate(base=0.1, schedule='cosine', horizon=160)
  stage = Stage('s', 80, {'w': ParamGroup('params/.*', lr, 0.8, 1e-4)}, ema=0.9)
  half = stage.scaled(0.5)
  assert half.hyperparams(0).rates['w']['base'] == 0.05
  assert float(half.train['w'].lr(40)) == float(lr(40)) / 2
  assert half.scaled(2.0) == stage


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
  ],
)
def test_a_stage_made_in_python_is_checked(change, message):
  stage = Stage('s', 5, {})
  with pytest.raises(ValueError, match=message):
    dataclasses.replace(stage, **change)


def test_cosine_that_ends_before_its_stage():
  lr = LearningRate(0.1, 'cosine', horizon=20.0, start=5.0)
  Stage('s', 15, {'w': ParamGroup('x', lr)})
  with pytest.raises(ValueError, match='is 0 from epoch 15 on'):
    Stage('s', 16, {'w': ParamGroup('x', lr)})


def test_pruning_needs_a_search_before_it():
  warmup = Stage('warmup', 1, {})
  search = Stage('search', 1, {}, delta_end=1e4)
  finetune = Stage('finetune', 0, {}, gate_threshold=0.9)
  stages.validate((warmup, search, finetune))
  stages.validate((warmup, search, finetune, search, finetune))
  for order in ((finetune,), (warmup, search, finetune, finetune)):
    with pytest.raises(errors.UserError, match='no stage before it searches'):
      stages.validate(order)
