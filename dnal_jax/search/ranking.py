"""Rankings of channels that need no search, to compare learned widths with.

Ours beside the paper. Each gives scores {gate path: [n]}, the larger the
better, by which `Budget.decide` keeps as many channels as a target allows:

    uniform        of every gate the same share; weights are not asked
    uniform_scale  of every gate the same share, its largest scales
    scale          the largest scales of all gates: |gamma| of the BatchNorm
                   that the gate follows (network slimming, arXiv 1708.06519)
    taylor         where removing a channel changes the loss least for its cost:
                   (dL/dg)^2 at g = 1, mean of batches (arXiv 1906.10771,
                   equation 8), over the gradient of the cost
"""

from collections.abc import Mapping
from typing import Any, Literal, get_args

import jax
import numpy as np

from dnal_jax import trees
from dnal_jax.graph import walk
from dnal_jax.search.budget import Budget, Scores

# How channels are ranked that are to be pruned; 'gates': by a search.
Ranking = Literal['gates', 'uniform', 'uniform_scale', 'scale', 'taylor']
RANKINGS: tuple[str, ...] = get_args(Ranking)


def uniform(graph: walk.Graph) -> Scores:
  """The same share of every gate, its middle channels first.

  Without a look at weights channels are interchangeable, but for this: where a
  ResNet's shortcut pads, the channels of the narrower map are the middle ones
  of the wider.
  """
  return _evenly(
    {
      gate: -abs(np.arange(len(ids)) - (len(ids) - 1) / 2)
      for gate, ids in graph.gates.items()
    }
  )


def by_scale(graph: walk.Graph, params: Mapping[str, Any]) -> Scores:
  """|gamma| of each gate's BatchNorm, given the collection `params`; the mean
  where two layers share a gate."""
  flat, found = trees.flatten(params), {}
  for path, layer in graph.layers.items():
    if layer.out_gate is not None and f'{path}/bn/scale' in flat:
      scale = abs(np.asarray(flat[f'{path}/bn/scale']))
      found.setdefault(layer.out_gate, []).append(scale)
  return {gate: np.mean(found[gate], axis=0) for gate in graph.gates}


def uniform_by_scale(graph: walk.Graph, params: Mapping[str, Any]) -> Scores:
  """The same share of every gate, its largest |gamma| first. Channels that are
  added to each other have one score, their mean: the same ones are kept."""
  scores = {gate: s.copy() for gate, s in by_scale(graph, params).items()}
  for members in _added(graph):
    mean = np.mean([scores[gate][i] for gate, i in members])
    for gate, i in members:
      scores[gate][i] = mean
  return _evenly(scores)


def by_taylor(squares: Scores, budget: Budget) -> Scores:
  """Squared gradients of the loss by gates, {path: [n]}, over what the channels
  cost: the gradient of the sum of the costs over their limits."""

  def relative(gates: Scores) -> Any:
    costs = zip(budget.costs, budget.limits, strict=True)
    return sum(cost(gates) / limit for cost, limit in costs)

  ones = {gate: np.ones(len(s), np.float32) for gate, s in squares.items()}
  prices = jax.device_get(jax.grad(relative)(ones))
  tiny = np.finfo(np.float32).tiny
  return {
    gate: np.asarray(s) / np.maximum(prices[gate], tiny)
    for gate, s in squares.items()
  }


def _evenly(scores: Scores) -> Scores:
  """Scores by which the same share of every gate is kept, in this order."""
  even = {}
  for gate, of_gate in scores.items():
    rank = np.argsort(np.argsort(-of_gate, kind='stable'))
    even[gate] = 1 - (rank + 0.5) / len(rank)
  return even


def _added(graph: walk.Graph) -> list[list[tuple[str, int]]]:
  """Channels that are added to each other, as (gate, index)."""
  group: dict[tuple[str, int], list[tuple[str, int]]] = {}
  index = {
    gate: {c: i for i, c in enumerate(ids)} for gate, ids in graph.gates.items()
  }
  for layer in graph.layers.values():
    of_map: dict[int, tuple[str, int]] = {}
    for part in layer.in_written if len(layer.in_written) > 1 else ():
      gate = part.width.gate
      if gate not in index:
        continue
      for channel, at in zip(part.channels, part.ids, strict=True):
        if channel not in index[gate]:
          continue
        here = gate, index[gate][channel]
        first = of_map.setdefault(at, here)
        mine, theirs = (group.setdefault(c, [c]) for c in (here, first))
        if mine is not theirs:
          theirs += mine
          group.update(dict.fromkeys(mine, theirs))
  return list({id(members): members for members in group.values()}.values())
