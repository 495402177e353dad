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
from dnal_jax.training.stages import Cut, Stage


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


def logits_of(graph, rng, scale=1.0):
  return {
    gate: jnp.asarray(scale * rng.normal(size=len(ids)))
    for gate, ids in graph.gates.items()
  }


def test_the_level_falls_to_the_target_and_stays():
  *_, graph = network('vgg7_digits')
  one = Target(macs=0.1).budget(graph, graph)
  open_ = {g: jnp.full(len(ids), 30.0) for g, ids in graph.gates.items()}
  for progress, share in ((0.0, 0), (0.3, 1 / 2), (0.6, 1), (1.0, 1)):
    got = jax.jit(one.excess)(open_, 1.0, jnp.array(progress))
    assert got == pytest.approx(-share * np.log(0.1), abs=1e-5)


@pytest.mark.parametrize('delta', [1.0, 20.0, 300.0])
@pytest.mark.parametrize('name', ['vgg7_digits', 'mobilenet_v2_digits'])
def test_gates_are_held_at_the_level(name, delta):
  """By one number for all, wherever the logits are; with two costs, the larger
  is at its level."""
  *_, graph = network(name)
  both = Target(macs=0.2, params=0.3).budget(graph, graph)
  rng = np.random.default_rng(0)

  @jax.jit
  def held(logits, *at):
    after = both.at_level(logits, *at)
    return after, both.excess(after, *at)

  for progress, scale in ((0.01, 0.0), (0.3, 1.0), (1.0, 0.1), (1.0, 5.0)):
    before = logits_of(graph, rng, scale)
    before = {gate: s - 40.0 for gate, s in before.items()}
    after, excess = held(before, delta, jnp.array(progress))
    moved = np.concatenate(
      [np.array(after[gate]) - np.array(before[gate]) for gate in before]
    )
    np.testing.assert_allclose(moved, moved[0], atol=1e-4)
    assert abs(excess) < 0.01
  gates = {gate: jax.nn.sigmoid(delta * s) for gate, s in after.items()}
  assert max(both.shares(gates)) == pytest.approx(1, abs=0.01)


@pytest.mark.parametrize('name', ['vgg7_digits', 'resnet8_digits'])
def test_the_gradient_at_the_level_is_that_of_what_is_trained(name):
  """Of a loss of the gates at the level, as a function of the logits, by
  differences in float64."""
  *_, graph = network(name)
  rng = np.random.default_rng(0)
  with jax.enable_x64(True):
    held = Target(macs=0.3).budget(graph, graph)
    at = jnp.array(0.8), jnp.array(1.0)  # delta, progress
    weights = logits_of(graph, rng)

    @jax.jit
    def loss(logits):
      return sum(
        (weights[gate] * jax.nn.sigmoid(at[0] * s) ** 2).sum()
        for gate, s in logits.items()
      )

    with pytest.MonkeyPatch.context() as patch:
      patch.setattr(budget, 'BISECTION_STEPS', 60)
      at_level = jax.jit(lambda logits: held.at_level(logits, *at))
      logits = at_level(logits_of(graph, rng))
      along = jax.jit(held.along_level)
      got = along(jax.jit(jax.grad(loss))(logits), logits, *at)
      for _ in range(3):
        way, step = logits_of(graph, rng), 1e-5
        ahead, back = (
          loss(at_level({g: s + sign * way[g] for g, s in logits.items()}))
          for sign in (step, -step)
        )
        wanted = (ahead - back) / (2 * step)
        found = sum(np.vdot(got[gate], way[gate]) for gate in way)
        assert found == pytest.approx(float(wanted), rel=1e-5, abs=1e-7)


def test_gates_that_are_all_closed_come_back_to_the_level():
  """With a gradient that is a number."""
  *_, graph = network('vgg7_digits')
  held = Target(macs=0.001).budget(graph, graph)
  at = 1e4, jnp.ones(())
  for s in (1.0, -1.0):
    equal = {gate: jnp.full(len(ids), s) for gate, ids in graph.gates.items()}
    level = jax.jit(held.at_level)(equal, *at)
    assert abs(jax.jit(held.excess)(level, *at)) < 0.1
    got = jax.jit(held.along_level)(equal, level, *at)
    assert all(np.isfinite(g).all() for g in got.values())


def test_a_search_that_ends_undecided_is_told_of():
  search = Stage('search', 10, {}, delta_end=300.0, target=Target(macs=0.1))
  cut = Cut(search, 'gates', search.target, None, 1, 0)
  few = {'a': np.array([0.0, 0.5, *[1.0] * 18])}
  assert advice.undecided_for_target(few, cut) is None
  warning = advice.undecided_for_target({'a': np.array([0.3, 1.0])}, cut)
  assert warning.startswith('1 of 2 gates are undecided')
  assert 'a larger stages.search.delta_end than 300' in warning
