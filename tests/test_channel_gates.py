"""The paper's formulas against closed forms."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dnal_jax.search import channel_gates
from dnal_jax.training.stages import Stage

TREE = {
  'stem': {'g': np.array([-0.5, 0.0, 0.25])},
  'block': {'out': {'g': np.array([3.0])}},
}


@pytest.fixture
def float64():
  with jax.enable_x64(True):
    yield


def test_delta_of_each_search_epoch():
  """Ten epochs to 1e4, as in the authors' code."""
  printed = [2.51, 6.31, 15.8, 39.8, 100, 251, 631, 1585, 3981, 10000]
  for epoch, digits in enumerate(printed):
    delta = channel_gates.delta_schedule(epoch, 10, 1e4)
    assert delta == pytest.approx(digits, rel=4e-3)
    exact = 10 ** (4 * (epoch + 1) / 10)
    assert delta == pytest.approx(exact, rel=1e-14)


@pytest.mark.parametrize('epoch', [0, 4, 9])
def test_stage_gates_use_that_delta(epoch):
  stage = Stage('search', 10, {}, delta_end=1e4)
  gate_logits = {'g': jnp.array([-1e-3, 0.0, 2e-3], jnp.float32)}
  values = jax.jit(channel_gates.gate_values)
  got = values(gate_logits, stage.hyperparams(epoch).delta)['g']
  delta = 10 ** (4 * (epoch + 1) / 10)
  want = [1 / (1 + math.exp(-delta * s)) for s in (-1e-3, 0.0, 2e-3)]
  np.testing.assert_allclose(got, want, rtol=1e-5)


def test_gates_start_at_one_half_and_open_gates_are_one():
  zeros = jax.tree.map(jnp.zeros_like, TREE)
  search = Stage('search', 10, {}, delta_end=1e4)
  warmup = Stage('warmup', 10, {})
  for stage, value in ((search, 0.5), (warmup, 1.0)):
    gates = channel_gates.gate_values(zeros, stage.hyperparams(0).delta)
    assert jax.tree.structure(gates) == jax.tree.structure(TREE)
    for leaf in jax.tree.leaves(gates):
      np.testing.assert_array_equal(leaf, value)


@pytest.mark.usefixtures('float64')
def test_penalty_and_its_gradient():
  def sigmoid(s):
    return 1 / (1 + math.exp(-s))

  values = [-0.5, 0.0, 0.25, 3.0]
  assert float(channel_gates.penalty(TREE)) == pytest.approx(
    sum(map(sigmoid, values)), rel=1e-15
  )
  gradient = jax.grad(channel_gates.penalty)(TREE)
  want = [sigmoid(s) * (1 - sigmoid(s)) for s in values]
  np.testing.assert_allclose(gradient['stem']['g'], want[:3], rtol=1e-14)
  np.testing.assert_allclose(
    gradient['block']['out']['g'], want[3:], rtol=1e-14
  )


@pytest.mark.usefixtures('float64')
def test_threshold_is_on_the_gate_not_the_logit():
  """sigmoid(1e4 * s) > 0.9 means s > log(9) / 1e4."""
  edge = math.log(9) / 1e4
  gate_logits = {'g': np.array([-1.0, 0.0, 0.999 * edge, 1.001 * edge, 1.0])}
  hard = channel_gates.hard_gates(gate_logits, 1e4, 0.9)
  assert hard['g'].tolist() == [0, 0, 0, 1, 1]


@pytest.mark.parametrize(
  ('gate_logits', 'multiple', 'want'),
  [
    ([3.0, -1.0, 2.0, -2.0, 1.0], 1, [1, 0, 1, 0, 1]),
    ([3.0, -1.0, 2.0, -2.0, 1.0], 2, [1, 1, 1, 0, 1]),
    ([3.0, -1.0, 2.0, -2.0, 1.0], 3, [1, 0, 1, 0, 1]),
    ([3.0, -1.0, 2.0, -2.0, 1.0], 8, [1, 1, 1, 1, 1]),  # all there are
    ([-3.0, -1.0, -2.0, -2.0], 4, [0, 0, 0, 0]),  # none stays none
    ([1.0, -2.0, -2.0, -2.0], 2, [1, 1, 0, 0]),  # the first of equals
  ],
)
def test_widths_are_rounded_up_by_the_largest_closed_logits(
  gate_logits, multiple, want
):
  tree = {'g': np.array(gate_logits)}
  assert (
    channel_gates.hard_gates(tree, 1e4, 0.9, multiple)['g'].tolist() == want
  )


def test_kept_channels_are_ids_of_the_full_network():
  hard = {'a': {'g': np.array([1.0, 0.0, 1.0])}}
  present, known = {'a': (2, 5, 7)}, {'a': tuple(range(9)), 'gone': (0, 1)}
  assert channel_gates.kept_channels(hard, present, known) == {
    'a': (2, 7),
    'gone': (),
  }


def test_count_by_state():
  gates = {'a': {'g': jnp.array([0.0, 0.05, 0.5, 0.95])}}
  assert [int(n) for n in channel_gates.count_by_state(gates)] == [2, 1, 1]
  assert [int(n) for n in channel_gates.count_by_state({})] == [0, 0, 0]


def test_gates_by_path_are_those_of_architecture_json():
  assert {k: len(g) for k, g in channel_gates.by_path(TREE).items()} == {
    'stem': 3,
    'block/out': 1,
  }
