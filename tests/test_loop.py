"""The loop over steps: calls of the device, stops, and what is not finite."""

from functools import partial
import time

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dnal_jax import errors, models
from dnal_jax.data import Data
from dnal_jax.data.resident import ResidentSource
from dnal_jax.graph import walk
from dnal_jax.parallel import stopping
from dnal_jax.training import evaluate, loop, step, train_state
from dnal_jax.training.optimizer import ParamGroup
from dnal_jax.training.schedule import LearningRate
from dnal_jax.training.stages import Stage

DIGITS = Data(
  'digits', mean=(0.3,), std=(0.4,), image=8, classes=10, validation=297,
  crop_pad=1,
)  # fmt: skip
WARMUP = Stage('warmup', 2, {'w': ParamGroup('params/.*', LearningRate(0.05))})


@pytest.fixture(scope='module')
def source():
  return ResidentSource.open(DIGITS, seed=0, batch_size=32, eval_batch_size=100)


@pytest.fixture(scope='module')
def trained(source):
  """train(monkeypatch, seconds) -> (network, state, metrics, steps of each
  call) of an epoch, whose calls are to take so many seconds."""
  net = models.get('vgg7_digits').build(classes=10, width=0.25)
  variables = jax.jit(net.init)(jax.random.key(0), jnp.zeros((1, 8, 8, 1)))
  gate_logits = jax.tree.map(jnp.zeros_like, variables['gates'])
  stage = loop.CompiledStage(net, WARMUP, source, dtype='float32', first_step=0)

  def train(monkeypatch, seconds):
    monkeypatch.setattr(loop.CallSizer, 'SECONDS', seconds)
    stage.sizer = loop.CallSizer(source.steps_per_call)
    state = jax.jit(partial(train_state.create_train_state, WARMUP))(
      variables['params'], gate_logits, variables['batch_stats']
    )
    done = [0]
    state, metrics = loop.train_steps(
      stage,
      state,
      source,
      first_step=0,
      steps=source.steps_per_epoch,
      epoch=0,
      on_steps=lambda n, _: done.append(n),
      stop=stopping.StopSignal(),
    )
    return net, jax.device_get(state), metrics, np.diff(done)

  return train


def test_grouping_does_not_change_a_digit(trained, monkeypatch, source):
  least = loop.CallSizer.LEAST
  _, one_by_one, metrics, calls = trained(monkeypatch, 0.0)
  assert max(calls) == least
  _, grouped, grouped_metrics, calls = trained(monkeypatch, 1000.0)
  assert max(calls) >= 2 * least
  assert sum(calls) == source.steps_per_epoch == len(metrics)
  jax.tree.map(np.testing.assert_array_equal, one_by_one, grouped)
  jax.tree.map(np.testing.assert_array_equal, metrics, grouped_metrics)
  assert one_by_one.step == source.steps_per_epoch


def test_a_stop_ends_the_loop_after_the_calls_in_flight(
  trained, monkeypatch, source
):
  """The vote of a call counts when it ends; another one is in flight then."""
  votes = iter([False, True, True, True])
  monkeypatch.setattr(stopping.StopSignal, 'vote', lambda self: next(votes))
  _, state, metrics, calls = trained(monkeypatch, 0.0)
  assert len(calls) == 3
  assert sum(calls) == len(metrics) == state.step < source.steps_per_epoch


def test_call_sizer_grows_by_at_most_two_and_keeps_its_bounds(monkeypatch):
  now = 0.0
  monkeypatch.setattr(time, 'perf_counter', lambda: now)
  sizer, sizes = loop.CallSizer(steps_per_call=20), []
  for seconds_per_step in (9.0, 0.001, 0.001, 0.001, 0.025, 9.0):
    now += seconds_per_step * sizer.steps
    sizer.call_ended(sizer.steps)
    sizes.append(sizer.steps)
  assert sizes == [4, 8, 16, 20, 10, 4]  # the first may have been compiled
  assert loop.CallSizer(steps_per_call=1).steps == 1


def metrics_of(*losses, finite=True):
  return [{'loss': loss, 'finite': finite} for loss in losses]


def test_what_is_not_finite_names_the_step_and_the_rates():
  loop.check_finite(metrics_of(1.0, 2.0), WARMUP, 5, 'nothing is saved')
  bad = metrics_of(1.0) + metrics_of(float('nan'), finite=False)
  with pytest.raises(errors.NotFinite) as raised:
    loop.check_finite(bad, WARMUP, 5, 'nothing is saved')
  message = str(raised.value)
  assert "the loss is nan, not finite in stage 'warmup', step 6" in message
  assert "{'w': 0.05}; nothing is saved" in message
  assert 'stages.warmup.train.*.lr.base' in message
  with pytest.raises(errors.NotFinite, match='a gradient is not finite'):
    loop.check_finite(metrics_of(1.0, finite=False), WARMUP, 5, '')


def test_evaluation_in_one_call_counts_every_image_once(
  trained, monkeypatch, source
):
  """297 images in batches of 100, beside one pass over all of them."""
  net, state, *_ = trained(monkeypatch, 1000.0)
  gates = jax.tree.map(jnp.ones_like, state.gate_logits)
  variables = {
    'params': state.params,
    'batch_stats': state.batch_stats,
    'gates': gates,
  }
  got = evaluate.Evaluator(source)(net, variables, 'validation')
  inputs, batches = next(iter(source.eval_inputs('validation')))
  assert batches == 3
  whole = ResidentSource.open(
    DIGITS, seed=0, batch_size=32, eval_batch_size=297
  )
  sums, _ = step.eval_step(variables, whole.eval_batch(inputs, 0), net=net)
  assert got['top1'] == pytest.approx(float(sums['top1']) / 297, abs=1e-7)
  assert got['loss'] == pytest.approx(float(sums['loss']) / 297, rel=1e-5)


def cosine(base, epochs):
  return LearningRate(base, 'cosine', end=1 / 2)


def search(epochs, *, penalty, delta_end, rate, momentum=0.9):
  groups = {
    'gates': ParamGroup('gates/.*', cosine(rate, epochs), momentum),
    'head': ParamGroup('params/head/.*', LearningRate(rate)),
  }
  return Stage('search', epochs, groups, delta_end, penalty)


def test_other_numbers_are_the_same_program(source):
  """So a sweep of lambdas compiles once; what is no number is another one."""
  net = models.get('vgg7_digits').build(classes=10, width=0.25)
  shapes = walk.graph_of(net, (8, 8, 1)).shapes

  def program(stage, first_step):
    compiled = loop.CompiledStage(
      net, stage, source, dtype='float32', first_step=first_step
    )
    state = loop.state_shapes(stage, shapes)
    return compiled.lower(state, source.input_shapes()).as_text()

  one = search(2, penalty=1e-3, delta_end=100.0, rate=0.1)
  other = search(9, penalty=0.04, delta_end=1e4, rate=0.3)
  assert program(one, 0) == program(other, 460)
  other = search(2, penalty=1e-3, delta_end=100.0, rate=0.1, momentum=0.8)
  assert program(one, 0) != program(other, 0)
