"""Targets: what is kept costs at most the target, and hardly less."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from test_cost import SMALL, SUPERNET_IN_LONG, network

from dnal_jax import errors
from dnal_jax.cost import exact
from dnal_jax.graph import surgery, walk
from dnal_jax.search import budget
from dnal_jax.search.budget import Target
from dnal_jax.training import advice


def kept(graph, masks):
  return {
    g: tuple(np.array(graph.gates[g])[m > 0].tolist()) for g, m in masks.items()
  }


def random_scores(graph, rng):
  """Layers differ, so that some would lose all of their channels."""
  return {
    g: rng.normal(size=len(ids)) + 2 * rng.normal()
    for g, ids in graph.gates.items()
  }


@pytest.mark.parametrize('multiple', [1, 4])
@pytest.mark.parametrize(
  'target',
  [
    Target(macs=0.5),
    Target(macs=0.15),
    Target(params=0.25),
    Target(macs=0.4, params=0.3),
  ],
  ids=str,
)
@pytest.mark.parametrize('name', SUPERNET_IN_LONG)
def test_what_is_kept_has_the_exact_cost(name, target, multiple):
  """At most the target, and so much that no channel more would fit; and the
  image reaches the classifier."""
  net, shape, graph = network(name)
  rng = np.random.default_rng(0)
  one = target.budget(graph, graph)
  for _ in range(3):
    scores = random_scores(graph, rng)
    masks = one.decide(scores, multiple)
    small = surgery.with_keep(net, kept(graph, masks))
    counts = exact.count(small, shape)
    shares = [
      getattr(counts, cost.name) / limit
      for cost, limit in zip(one.costs, one.limits, strict=True)
    ]
    assert shares == one.shares(masks)
    assert max(shares) <= 1
    assert not walk.graph_of(small, shape).cut_off_by
    if max(shares) < budget.CLOSE:
      for gate, mask in masks.items():
        closed = np.flatnonzero(mask == 0)
        best = closed[np.argsort(-scores[gate][closed], kind='stable')][
          :multiple
        ]
        more = mask.copy()
        more[best] = 1
        assert not len(closed) or not one.fits({**masks, gate: more})
    for mask in masks.values():
      n = int(mask.sum())
      assert n % multiple == 0 or n == len(mask)


def test_better_channels_are_kept_first():
  *_, graph = network('vgg7_digits')
  rng = np.random.default_rng(3)
  scores = {
    g: rng.permutation(len(ids)) / len(ids) for g, ids in graph.gates.items()
  }
  masks = Target(macs=0.3).budget(graph, graph).decide(scores, 1)
  lowest = max(scores[g][m == 0].max() for g, m in masks.items())
  # One threshold for all gates but for the channels that were added back.
  share = np.mean(
    [(scores[g][m > 0] > lowest).mean() for g, m in masks.items()]
  )
  assert share > 0.9


def test_absolute_targets():
  _, _, graph = network('vgg7_digits')
  one = Target(macs=300_000, params=20_000).budget(graph, graph)
  assert one.limits == (300_000, 20_000)
  assert Target(macs=0.5).budget(graph, graph).limits == (2_379_008 // 2,)
  assert (str(Target()), bool(Target())) == ('none', False)
  assert str(Target(macs=0.5, params=1e4)) == 'macs 0.5 and params 10000'


@pytest.mark.parametrize(
  ('target', 'multiple', 'message'),
  [
    (
      Target(macs=1e-4),
      1,
      r'target.macs is 0.0001, but .* less than 1,522 macs',
    ),
    (Target(params=50), 1, r'params is 50, but .* 92 params .* 1 channel for'),
    (Target(params=500), 8, r'params is 500, but .* with 8 channels for each'),
    (Target(macs=3e6), 1, r'macs is 3e\+06, more than the 2,379,008 macs of'),
  ],
)
def test_targets_that_cannot_be_reached(target, multiple, message):
  *_, graph = network('vgg7_digits')
  with pytest.raises(errors.UserError, match=message):
    target.check_reachable(graph, multiple, 'vgg7_digits', 'target')
  least = budget.smallest(graph, 1)
  exactly = Target(
    params=float(Target(params=1.0).budget(graph, graph).costs[0](least))
  )
  exactly.check_reachable(graph, 1, 'vgg7_digits', 'target')


@pytest.mark.parametrize('name', SMALL)
def test_the_smallest_network(name):
  """A channel of each gate on a way to the classifier, of which none can be
  left out."""
  net, shape, graph = network(name)
  masks = budget.smallest(graph, 1)
  small = surgery.with_keep(net, kept(graph, masks))
  assert not walk.graph_of(small, shape).cut_off_by
  for gate in graph.needed_gates:
    less = {**masks, gate: 0 * masks[gate]}
    assert walk.graph_of(
      surgery.with_keep(net, kept(graph, less)), shape
    ).cut_off_by


def test_the_level_falls_to_the_target_and_stays():
  *_, graph = network('vgg7_digits')
  one = Target(macs=0.1, params=0.5).budget(graph, graph)
  gates = {g: jnp.ones(len(ids)) for g, ids in graph.gates.items()}
  np.testing.assert_allclose(one.excess(gates, jnp.zeros(())), 0, atol=1e-5)
  logs = -np.log([0.1, 0.5])
  np.testing.assert_allclose(
    one.excess(gates, jnp.array(0.3)), logs / 2, rtol=1e-3
  )
  for progress in (0.6, 1.0):
    got = one.excess(gates, jnp.array(progress))
    np.testing.assert_allclose(got, logs, rtol=1e-3)


def test_multipliers_grow_above_the_level_only():
  start = budget.initial_multipliers(Target(macs=0.5, params=0.5))
  np.testing.assert_array_equal(start, [0, 0])
  after = start
  for _ in range(50):  # a whole search, however many steps it has
    after = budget.next_multipliers(after, jnp.array([0.2, -0.2]), 50)
  np.testing.assert_allclose(after, [0.2 * budget.RATE, 0], rtol=1e-5)
  most = budget.next_multipliers(jnp.array([19.9]), jnp.array([9.0]), 1)
  assert most == budget.MAX_MULTIPLIER


def test_a_penalty_of_what_is_below_its_level_is_zero():
  *_, graph = network('vgg7_digits')
  one = Target(macs=0.5).budget(graph, graph)
  assert one.penalty(jnp.array([-0.1]), jnp.array([0.0])) == 0
  assert one.penalty(jnp.array([0.5]), jnp.array([1.0])) == pytest.approx(0.75)


def test_the_cost_of_closed_gates_has_a_finite_logarithm():
  """A search may close all gates on its way to a small target; its gradient is
  a number all the same, and its result is ranked."""
  *_, graph = network('vgg7_digits')
  held = Target(macs=0.001).budget(graph, graph)

  def loss(logits):
    gates = {gate: jax.nn.sigmoid(300 * s) for gate, s in logits.items()}
    excess = held.excess(gates, jnp.ones(()))
    return held.penalty(excess, jnp.ones(1)), excess

  logits = {gate: -jnp.ones(len(ids)) for gate, ids in graph.gates.items()}
  grads, excess = jax.grad(loss, has_aux=True)(logits)
  assert np.isfinite(excess).all()
  assert excess[0] < -5
  assert all(np.isfinite(g).all() for g in grads.values())


def test_a_search_far_below_its_target_is_told_of():
  assert advice.below_target({'macs': 0.9, 'params': 0.01}) is None
  warning = advice.below_target({'macs': 0.03})
  assert 'costs macs 0.03 of its target' in warning
  assert 'stages.search.epochs' in warning
