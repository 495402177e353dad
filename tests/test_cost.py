"""Costs of gates: exact where gates are 0 or 1, differentiable between."""

import jax
import jax.numpy as jnp
from keeping import patterns
import numpy as np
import pytest

from dnal_jax.cost import cost, exact
from dnal_jax.graph import surgery, walk
from dnal_jax.models import zoo

SMALL = [name for name in zoo.NETWORKS if name.endswith('_digits')]
SUPERNET_IN_LONG = [
  pytest.param(name, marks=[pytest.mark.long] * name.startswith('proxyless'))
  for name in SMALL
]
PUBLISHED = [name for name in zoo.NETWORKS if not name.endswith('_digits')]


def network(name):
  """(network, shape of its images, graph)."""
  variant = zoo.NETWORKS[name]
  net = variant.build(classes=variant.classes)
  shape = variant.image, variant.image, 1 if variant.image == 8 else 3
  return net, shape, walk.graph_of(net, shape)


def hard_patterns(gates, rng):
  """Half, a tenth, almost none, whole branches and candidates closed."""
  yield from patterns(gates, rng).values()
  for share in (0.1, 0.5):
    yield {
      g: tuple(i for i in ids if rng.random() < share)
      for g, ids in gates.items()
    }
  blocks = {gate.rpartition('/')[0] for gate in gates}
  closed = {block for block in blocks if rng.random() < 0.4}
  yield {
    g: () if g.rpartition('/')[0] in closed else ids for g, ids in gates.items()
  }
  closed = {gate for gate in gates if rng.random() < 0.3}
  yield {g: () if g in closed else ids for g, ids in gates.items()}
  yield gates


@pytest.mark.parametrize(
  'name',
  [
    *SUPERNET_IN_LONG,
    *(pytest.param(n, marks=pytest.mark.long) for n in PUBLISHED),
  ],
)
def test_a_cost_of_hard_gates_is_the_exact_integer(name):
  """Of the network that is cut by them: macs and parameters."""
  net, shape, graph = network(name)
  costs = [make(graph) for make in cost.KINDS.values()]
  for keep in hard_patterns(graph.gates, np.random.default_rng(0)):
    want = exact.count(surgery.with_keep(net, keep), shape)
    for one in costs:
      assert one.of_kept(keep) == getattr(want, one.name), one.name


@pytest.mark.parametrize('name', SUPERNET_IN_LONG)
def test_a_cost_of_a_pruned_network_counts_what_is_left(name):
  """As for a second search."""
  net, shape, graph = network(name)
  rng = np.random.default_rng(1)
  first = patterns(graph.gates, rng)
  left = surgery.with_keep(net, next(iter(first.values())))
  graph = walk.graph_of(left, shape)
  costs = [make(graph) for make in cost.KINDS.values()]
  for _ in range(3):
    keep = {
      g: tuple(i for i in ids if rng.random() < 0.5)
      for g, ids in graph.gates.items()
    }
    all_gates = {**dict.fromkeys(walk.graph_of(net, shape).gates, ()), **keep}
    want = exact.count(surgery.with_keep(net, all_gates), shape)
    for one in costs:
      assert one.of_kept(keep) == getattr(want, one.name), one.name


@pytest.mark.parametrize('name', SUPERNET_IN_LONG)
def test_gradients_of_a_cost(name):
  """Against finite differences in float64, at random soft gates."""
  *_, graph = network(name)
  rng = np.random.default_rng(0)
  with jax.enable_x64(True):
    gates = {
      g: jnp.asarray(rng.uniform(0.05, 0.95, len(ids)))
      for g, ids in graph.gates.items()
    }
    way = {
      g: jnp.asarray(rng.normal(size=len(ids)))
      for g, ids in graph.gates.items()
    }
    for make in cost.KINDS.values():
      one = make(graph)
      value = jax.jit(
        lambda t, one=one: one({g: gates[g] + t * way[g] for g in gates})
      )
      step = 1e-4
      by_differences = (value(step) - value(-step)) / (2 * step)
      gradient = jax.jit(jax.grad(value))(0.0)
      np.testing.assert_allclose(gradient, by_differences, rtol=1e-6)
      # Each gate more costs more.
      of_gates = jax.jit(jax.grad(one))(gates)
      assert all((g >= 0).all() for g in jax.tree.leaves(of_gates))
      assert 0 < float(one(gates)) < one.full


def test_soft_costs_by_hand():
  """Two convolutions and a classifier, with gates of one half: a quarter of
  what both ends of a layer share."""
  *_, graph = network('vgg7_digits')
  half = {g: np.full(len(ids), 0.5) for g, ids in graph.gates.items()}
  want = sum(
    layer.macs * 0.5 ** ((path != 'conv1_1') + (layer.out_gate is not None))
    for path, layer in graph.layers.items()
    if not path.startswith('head/') or path == 'head/logits'
  )
  hidden = [
    p for p in graph.layers if p.startswith('head/') and p != 'head/logits'
  ]
  assert not hidden
  assert cost.macs(graph)(half) == pytest.approx(want)
