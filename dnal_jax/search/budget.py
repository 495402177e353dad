"""A target for what a network costs: how a search holds it, what is kept.

Ours; not in the paper. In the search, the gates are

    g = sigmoid(delta * (s - t)),

where one number t for all of them is such that a cost C (`cost.Cost`) of these
soft gates equals a level, which falls from that of the full network to the
target. So t depends on the logits, and the gradient of the loss L is

    dL/ds - w * dC/ds,   w = sum(dL/ds) / sum(dC/ds)  at fixed t:

along the surface of equal cost. A gate opens where it lowers the loss by more
per unit of cost than the others do; there is no weight to choose. With several
costs, t is the largest of theirs, and that cost is C. The logits are stored
less t, so that the gates of a step are sigmoid(delta * s) as without a target.

At the end, gates are ranked by their logits, and as many channels are kept as
the exact cost of the target allows.
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
# Steps of the bisection for t.
BISECTION_STEPS = 24
# Channels are added back until the cost is this share of its target.
CLOSE = 0.999

Logits = Mapping[str, jax.Array]  # gate path -> [n] float32
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
          f' {_percent_hint(asked)}give more, or choose another network or'
          ' width'
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


@dataclasses.dataclass(frozen=True, eq=False)
class Budget:
  """Costs of one network, and the most that each may be."""

  graph: walk.Graph
  costs: tuple[Cost, ...]
  limits: tuple[int, ...]

  # In the search.

  def excess(
    self, logits: Logits, delta: jax.typing.ArrayLike, progress: jax.Array
  ) -> jax.Array:
    """[] float32, the largest log(C / level) of the costs, for gate logits by
    path, after the share `progress` of the search."""
    gates = {path: jax.nn.sigmoid(delta * s) for path, s in logits.items()}
    share = jnp.minimum(progress / SETTLED, 1.0)
    logs = []
    for cost, limit in zip(self.costs, self.limits, strict=True):
      level = (1 - share) * np.log(cost.full) + share * np.log(limit)
      logs.append(jnp.log(cost(gates)) - level)
    return jnp.stack(logs).max()

  def at_level(
    self, logits: Logits, delta: jax.typing.ArrayLike, progress: jax.Array
  ) -> dict[str, jax.Array]:
    """The logits less the number t at which the cost is at its level."""
    every = jnp.concatenate(list(logits.values()))
    # Where all gates are open or closed to the last digits of float32.
    ends = every.min() - 17 / delta, every.max() + 17 / delta

    def halved(_, ends):
      low, high = ends
      t = (low + high) / 2
      above = self.excess(_minus(logits, t), delta, progress) > 0
      return jnp.where(above, t, low), jnp.where(above, high, t)

    low, high = jax.lax.fori_loop(0, BISECTION_STEPS, halved, ends)
    return _minus(logits, (low + high) / 2)

  def along_level(
    self,
    grads: Logits,
    logits: Logits,
    delta: jax.typing.ArrayLike,
    progress: jax.Array,
  ) -> dict[str, jax.Array]:
    """The gradient of loss(at_level(logits)) at logits that are at the level,
    given `grads`, that of loss(logits)."""
    of_cost = jax.grad(self.excess)(logits, delta, progress)
    total = sum(g.sum() for g in of_cost.values())
    # Where every gate is open or closed, nothing moves.
    weight = sum(g.sum() for g in grads.values()) / jnp.maximum(total, 1e-6)
    return {path: g - weight * of_cost[path] for path, g in grads.items()}

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


def _minus(logits: Logits, t: jax.Array) -> dict[str, jax.Array]:
  return {path: s - t for path, s in logits.items()}


def _percent_hint(asked: float) -> str:
  """What to give instead, if the target may have been meant as per cent."""
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
