"""A target for what a network costs: its penalty in the search, its decision.

Ours; not in the paper. In the search, a cost C (`cost.Cost`) of the soft gates
is held at a level that falls from that of the full network to the target, by

    w * log(C / level),   w = max(0, m + log(C / level)),

whose multiplier m grows by `RATE` * log(C / level) over the search while the
cost is above the level, and shrinks below it (the augmented Lagrangian method),
so that short searches get to the target as long ones do. At the end, gates are
ranked by their logits, and as many channels are kept as the exact cost of the
target allows.
"""

from collections.abc import Callable, Iterable, Mapping
import dataclasses
from typing import Annotated, Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from dnal_jax import errors, limits, nn
from dnal_jax.cost.cost import KINDS, Cost
from dnal_jax.cost.live import Live
from dnal_jax.graph import walk
from dnal_jax.limits import Range

# The level has reached the target after this share of the search, so that the
# rest of it can settle there.
SETTLED = 0.6
RATE = 10.0
MAX_MULTIPLIER = 20.0
# Below this share of the limit a cost is not told from less.
LEAST = 1e-3
# Channels are added back until the cost is this share of its target.
CLOSE = 0.999

Scores = Mapping[str, np.ndarray]  # gate path -> [n], the larger the better
Masks = dict[str, np.ndarray]  # gate path -> [n] int64, 0 or 1


@dataclasses.dataclass(frozen=True)
class Target:
  """What the pruned network may cost: up to 1 a share of the full network,
  above 1 an absolute number; None: anything. All must hold."""

  macs: Annotated[float | None, Range(above=0)] = None
  params: Annotated[float | None, Range(above=0)] = None

  def __post_init__(self):
    limits.check(self)

  def __bool__(self) -> bool:
    return any(value is not None for value in vars(self).values())

  def __str__(self) -> str:
    given = [f'{k} {v:g}' for k, v in vars(self).items() if v is not None]
    return ' and '.join(given) or 'none'

  def check_reachable(
    self, full: walk.Graph, multiple: int, network: str, key: str
  ) -> None:
    """Raises UserError if no network has the target, or every one does; `key`
    is what configs call it."""
    budget = self.budget(full, full)
    assert budget is not None
    least = smallest(full, multiple)
    for cost, limit in zip(budget.costs, budget.limits, strict=True):
      asked = getattr(self, cost.name)
      given = f'{key}.{cost.name} is {asked:g}'
      if limit > cost.full:
        raise errors.UserError(
          f'{given}, more than the {cost.full:,} {cost.name} of the full'
          f" '{network}'; give less, or a share of it, up to 1"
        )
      if int(cost(least)) > limit:
        channels = f'{multiple} channel{"s" * (multiple > 1)}'
        raise errors.UserError(
          f"{given}, but '{network}' cannot have less than {int(cost(least)):,}"
          f' {cost.name} ({int(cost(least)) / cost.full:.2g} of the full'
          f' network), with {channels} for each gate that nothing bypasses;'
          f' {_share_meant(asked)}give more, or choose another network or width'
        )

  def budget(self, graph: walk.Graph, full: walk.Graph) -> 'Budget | None':
    """The target for a network that is to be pruned; shares are those of the
    full network. None if nothing is limited."""
    if not self:
      return None
    costs, most = [], []
    for kind, make in KINDS.items():
      value = getattr(self, kind)
      if value is not None:
        costs.append(make(graph))
        most.append(limit_of(value, make(full).full))
    return Budget(graph, tuple(costs), tuple(most))


def initial_multipliers(target: Target) -> jax.Array:
  """[k] float32, for the k costs that the target limits."""
  return jnp.zeros(sum(v is not None for v in vars(target).values()))


def next_multipliers(
  multipliers: jax.Array, excess: jax.Array, steps: jax.typing.ArrayLike
) -> jax.Array:
  """After a step, of so many in the search, in which the costs were `excess`
  above their levels."""
  grown = multipliers + RATE / steps * excess
  return jnp.clip(grown, 0.0, MAX_MULTIPLIER)


@dataclasses.dataclass(frozen=True, eq=False)
class Budget:
  """Costs of one network, and the most that each may be."""

  graph: walk.Graph
  costs: tuple[Cost, ...]
  limits: tuple[int, ...]

  # In the search.

  def excess(self, gates: Mapping[str, Any], progress: jax.Array) -> jax.Array:
    """[k] float32, log(C / level) of each cost for soft gates by path, after
    the share `progress` of the search."""
    share = jnp.minimum(progress / SETTLED, 1.0)
    logs = []
    for cost, limit in zip(self.costs, self.limits, strict=True):
      level = (1 - share) * np.log(cost.full) + share * np.log(limit)
      # Where all gates are closed, a cost has no logarithm.
      soft = jnp.maximum(cost(gates), LEAST * limit)
      logs.append(jnp.log(soft) - level)
    return jnp.stack(logs)

  def penalty(self, excess: jax.Array, multipliers: jax.Array) -> jax.Array:
    """What is added to the loss, given [k] `excess` and multipliers."""
    weights = jnp.maximum(multipliers + excess, 0.0)
    return (jax.lax.stop_gradient(weights) * excess).sum()

  # At its end.

  def shares(self, masks: Mapping[str, Any]) -> list[float]:
    """Each cost over its limit, for the channels of `masks` or soft gates."""
    return [
      float(cost(masks)) / limit
      for cost, limit in zip(self.costs, self.limits, strict=True)
    ]

  def relative(self, gates: Mapping[str, Any]) -> dict[str, float]:
    """`shares` by the names of costs."""
    names = (cost.name for cost in self.costs)
    return dict(zip(names, self.shares(gates), strict=True))

  def reached(self, keep: nn.Keep) -> dict[str, float]:
    """The exact costs of the channels `keep` over their limits, by name."""
    return {
      cost.name: cost.of_kept(keep) / limit
      for cost, limit in zip(self.costs, self.limits, strict=True)
    }

  def fits(self, masks: Masks) -> bool:
    """Whether no cost is above its limit."""
    return max(self.shares(masks)) <= 1

  def decide(self, scores: Scores, multiple: int) -> Masks:
    """The channels to keep: as many of the best as the limits allow.

    The channels of a gate are kept in groups of `multiple`, best first; a group
    has the score of its best channel. Gates that the image needs to reach the
    classifier keep a group whatever its score.
    """
    groups = _groups(scores, multiple)
    needed = [
      next(group for group in groups if group.gate == gate)
      for gate in self.graph.needed_gates
    ]
    path: list[_Group] = []
    while True:
      chosen = _largest(
        len(groups), lambda n: self.fits(_keep(scores, path + groups[:n]))
      )
      kept = _keep(scores, path + groups[:chosen])
      closed = [group for group in needed if not kept[group.gate].any()]
      if not closed or Live(self.graph, kept).reaches_classifier():
        break
      path.append(closed[0])
    for group in groups[chosen:]:
      if max(self.shares(kept)) >= CLOSE:
        break
      more = {**kept, group.gate: kept[group.gate] | group.mask}
      if self.fits(more):
        kept = more
    return kept


class _Group(NamedTuple):
  """Channels of a gate that are kept or not kept together."""

  score: float
  gate: str
  mask: np.ndarray  # [n] int64 of the gate, 1 for these channels


def _share_meant(asked: float) -> str:
  """A hint for who gave per cent, which is a number above 1."""
  if not 1 < asked <= 100:
    return ''
  return f'for {asked:g} per cent give {asked / 100:g}; else '


def limit_of(asked: float, full: int) -> int:
  """The most that a target allows: up to 1 it is a share of `full`."""
  return int(asked * full if asked <= 1 else asked)


def kept_ids(graph: walk.Graph, masks: Masks) -> dict[str, nn.Ids]:
  """The channels of a graph that `masks` keep."""
  return {
    gate: tuple(c for c, on in zip(ids, masks[gate], strict=True) if on)
    for gate, ids in graph.gates.items()
  }


def smallest(graph: walk.Graph, multiple: int) -> Masks:
  """The least that can be kept: a group of `multiple` channels of each gate
  that the image needs."""
  scores = {gate: np.zeros(len(ids)) for gate, ids in graph.gates.items()}
  first = {group.gate: group for group in reversed(_groups(scores, multiple))}
  return _keep(scores, [first[gate] for gate in graph.needed_gates])


def _groups(scores: Scores, multiple: int) -> list[_Group]:
  """All channels in groups, the best group first; ties in order."""
  groups = []
  for gate, of_gate in scores.items():
    order = np.argsort(-of_gate, kind='stable')
    for start in range(0, len(order), multiple):
      members = order[start : start + multiple]
      mask = np.zeros(len(order), np.int64)
      mask[members] = 1
      groups.append(_Group(float(of_gate[members[0]]), gate, mask))
  return sorted(groups, key=lambda group: -group.score)


def _keep(scores: Scores, groups: Iterable[_Group]) -> Masks:
  masks = {gate: np.zeros(len(s), np.int64) for gate, s in scores.items()}
  for group in groups:
    masks[group.gate] |= group.mask
  return masks


def _largest(most: int, holds: Callable[[int], bool]) -> int:
  """The largest n up to `most` for which `holds`, which ends to hold as n
  grows; 0 if it never does."""
  low, high = 0, most + 1
  while high - low > 1:
    middle = (low + high) // 2
    low, high = (middle, high) if holds(middle) else (low, middle)
  return low
