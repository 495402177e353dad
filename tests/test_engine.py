"""Steps in groups: the same digits however they are grouped."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dnal_jax import models
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
  """Returns (state, metrics, what was told) of an epoch, by target seconds."""
  net = models.get('vgg7_digits').build(classes=10, width=0.25)
  variables = jax.jit(net.init)(jax.random.key(0), jnp.zeros((1, 8, 8, 1)))
  gate_logits = jax.tree.map(jnp.zeros_like, variables['gates'])
  stage = loop.CompiledStage(net, WARMUP, source, dtype='float32', first_step=0)

  def train(monkeypatch, seconds):
    monkeypatch.setattr(loop, '_SECONDS', seconds)
    state = jax.jit(partial(train_state.create_train_state, WARMUP))(
      variables['params'], gate_logits, variables['batch_stats']
    )
    told = []
    state, metrics = stage.train(
      state,
      step=0,
      steps=source.steps_per_epoch,
      epoch=0,
      told=lambda done, _: told.append(done),
      stop=stopping.StopSignal(),
    )
    return net, jax.device_get(state), metrics, told

  return train


def test_grouping_does_not_change_a_digit(trained, monkeypatch, source):
  _, one_by_one, metrics, told = trained(monkeypatch, 0.0)
  assert max(told) == loop._LEAST
  _, grouped, grouped_metrics, told = trained(monkeypatch, 1000.0)
  assert max(told) >= 2 * loop._LEAST
  assert sum(told) == source.steps_per_epoch == len(metrics)
  jax.tree.map(np.testing.assert_array_equal, one_by_one, grouped)
  jax.tree.map(np.testing.assert_array_equal, metrics, grouped_metrics)
  assert one_by_one.step == source.steps_per_epoch


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
  return LearningRate(base, 'cosine', horizon=2.0 * epochs)


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
