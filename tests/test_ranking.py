"""Rankings of channels without a search."""

import numpy as np
import pytest

from dnal_jax import trees
from dnal_jax.graph import surgery, walk
from dnal_jax.models import zoo
from dnal_jax.search import ranking
from dnal_jax.search.budget import Target

NAMES = ['vgg7_digits', 'resnet8_digits', 'mobilenet_v2_digits']


def graph_of(name):
  net = zoo.NETWORKS[name].build(classes=10)
  return net, walk.graph_of(net, (8, 8, 1))


def decide(graph, scores, **target):
  """{gate: ids that are kept}."""
  budget = Target(**target).budget(graph, graph)
  masks = budget.decide(scores, 1)
  assert 0.99 < max(budget.shares(masks)) <= 1
  return {
    gate: tuple(np.array(ids)[masks[gate] > 0])
    for gate, ids in graph.gates.items()
  }


def random_scales(graph, rng):
  """The collection `params` with random scales of BatchNorm."""
  flat = trees.flatten(graph.shapes['params'])
  return trees.unflatten({p: rng.normal(size=a.shape) for p, a in flat.items()})


@pytest.mark.parametrize('name', NAMES)
@pytest.mark.parametrize('share', [0.5, 0.2])
def test_uniform_keeps_the_same_share_of_every_gate(name, share):
  """To a channel, which is where the target is met; and it is narrow: sums
  have no more channels than the layers that write them."""
  net, graph = graph_of(name)
  keep = decide(graph, ranking.uniform(graph), macs=share)
  kept = {g: len(ids) / len(graph.gates[g]) for g, ids in keep.items()}
  for gate, of_gate in kept.items():
    one = 1 / len(graph.gates[gate])
    assert abs(of_gate - np.median(list(kept.values()))) < 2.5 * one + 1e-9
  small = walk.graph_of(surgery.with_keep(net, keep), (8, 8, 1))
  for path, layer in small.layers.items():
    for part in layer.in_written if layer.in_ids is not None else ():
      most = max(len(p.ids) for p in layer.in_written)
      assert len(layer.in_ids) <= most + 1, (path, part)


@pytest.mark.parametrize('name', NAMES)
def test_the_largest_scales_are_kept(name):
  _, graph = graph_of(name)
  params = random_scales(graph, np.random.default_rng(0))
  scales = ranking.by_scale(graph, params)
  flat = trees.flatten(params)
  layers = [(p, n) for p, n in graph.layers.items() if n.out_gate and n.norm]
  for gate in graph.gates:
    of_gate = [
      abs(flat[f'{path}/bn/scale']) for path, n in layers if n.out_gate == gate
    ]
    np.testing.assert_allclose(scales[gate], np.mean(of_gate, 0))
  kept = decide(graph, scales, params=0.3)
  smallest = min(
    scales[gate][graph.gates[gate].index(c)]
    for gate, ids in kept.items()
    for c in ids
  )
  gone = [
    scales[gate][graph.gates[gate].index(c)]
    for gate, ids in graph.gates.items()
    for c in ids
    if c not in kept[gate]
  ]
  # Some that cost little are added back where no other fits.
  assert np.median(gone) < smallest + 0.5


def test_channels_that_are_added_go_together():
  """Of a residual stream: the same ones of each branch, by their mean scale."""
  _, graph = graph_of('resnet8_digits')
  params = random_scales(graph, np.random.default_rng(1))
  scores = ranking.uniform_by_scale(graph, params)
  added = ranking._added(graph)
  assert added
  scales = ranking.by_scale(graph, params)
  means = [np.mean([scales[g][i] for g, i in members]) for members in added]
  for gate in graph.gates:
    mine = [
      (scores[gate][i], mean)
      for members, mean in zip(added, means, strict=True)
      for g, i in members
      if g == gate
    ]
    if mine:
      assert len(mine) == len(scores[gate])
      assert [m for _, m in sorted(mine)] == sorted(m for _, m in mine)
  assert any(len({g for g, _ in members}) > 2 for members in added)


def test_taylor_divides_by_what_a_channel_costs():
  """At equal gradients the cheapest channels are kept, and a channel without
  a gradient goes first."""
  _, graph = graph_of('vgg7_digits')
  budget = Target(macs=0.5).budget(graph, graph)
  squares = {gate: np.ones(len(ids)) for gate, ids in graph.gates.items()}
  squares['gate2_1'][3] = 0.0
  scores = ranking.by_taylor(squares, budget)
  assert scores['gate2_1'][3] == 0
  del squares['gate2_1']
  (cost,) = budget.costs
  gates = {g: np.ones(len(ids), np.float32) for g, ids in graph.gates.items()}
  for gate in squares:
    less = {**gates, gate: gates[gate].copy()}
    less[gate][0] = 0
    price = (cost(gates) - cost(less)) / budget.limits[0]
    np.testing.assert_allclose(scores[gate][0] * price, 1, rtol=1e-4)
