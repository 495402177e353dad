"""From searched gates to a smaller network that is proved to be the same.

The network is cut, run against the hard-gated one on the validation split,
and handed over only if the two agree to rounding.
"""

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import jax
import numpy as np

from dnal_jax import errors, nn
from dnal_jax.graph import surgery, walk
from dnal_jax.parallel import mesh
from dnal_jax.search import channel_gates
from dnal_jax.training import evaluate
from dnal_jax.training.stages import Stage


class Pruned(NamedTuple):
  """A compact network and how it compares with what it was cut from."""

  keep: nn.Keep
  params: Any
  batch_stats: Any
  comparison: evaluate.Comparison  # on validation


class PrunableModel:
  """A network, and the part of it that is left by now."""

  def __init__(self, full: Any, image_shape: tuple[int, int, int]):
    self.full, self.image_shape = full, image_shape
    self.cut({})
    self.known = self.graph.gates  # gate -> ids of all its channels
    self.gates = self.kept  # channels that have a gate

  def cut(self, keep: nn.Keep) -> None:
    """From now on the network with these channels; {}: with all."""
    self.net = surgery.with_keep(self.full, keep)
    self.graph = walk.graph_of(self.net, self.image_shape)
    self.kept = sum(map(len, self.graph.gates.values()))

  def zeros(self) -> Any:
    """Logits with which a network begins: all gates undecided."""
    gates = self.graph.shapes.get('gates', {})
    return jax.tree.map(lambda a: np.zeros(a.shape, a.dtype), gates)


class Cut(NamedTuple):
  """What is cut on entry of a stage, by the gates of a search before it."""

  search: Stage
  threshold: float  # gates above it stay
  multiple: int  # of which the widths kept are made multiples
  stages_ahead: int  # 1: the next stage cuts


def next_cut(stages: tuple[Stage, ...], here: int) -> Cut | None:
  """The next cut of what stage number `here` or the last one before searches;
  None if there is none."""
  searches = [s for s in stages[: here + 1] if s.delta_end is not None]
  for ahead, stage in enumerate(stages[here + 1 :], 1):
    if stage.gate_threshold is not None and searches:
      multiple = stage.channel_multiple
      return Cut(searches[-1], stage.gate_threshold, multiple, ahead)
  return None


def pruning_warning(network: PrunableModel, gate_logits: Any, cut: Cut) -> str:
  """What would be wrong with the cut if the search ended now, for people; ''
  if nothing is."""
  decided = _decide(network, gate_logits, cut)
  kept = sum(map(len, decided.keep.values()))
  if kept == network.kept:
    return (
      'as the gates are now, no channel would be cut: the penalty,'
      f' {cut.search.penalty:g}, may be too small for so few steps'
    )
  if decided.closed:
    return (
      'as the gates are now, every channel would be cut of'
      f' {", ".join(decided.closed)}, which nothing bypasses: the penalty,'
      f' {cut.search.penalty:g}, may be too large for so many steps'
    )
  return ''


def prune(
  network: PrunableModel,
  params: Any,
  gate_logits: Any,
  batch_stats: Any,
  cut: Cut,
  *,
  evaluator: evaluate.Evaluator,
  decided: Callable[[nn.Keep], None],
) -> Pruned:
  """Cuts to the gates above the threshold at the search's last delta, and to
  widths that are multiples (`channel_gates.hard_gates`).

  `decided` is told the surviving channels first, so that they are kept even
  if nothing can be built on them. `network` stays as it was.

  Raises:
    UserError: closed gates keep the image from the classifier.
    RuntimeError: the two networks are not the same function.
  """
  gates, keep, closed, small, small_graph = _decide(network, gate_logits, cut)
  decided(keep)
  if closed:
    penalty = cut.search.penalty
    raise errors.UserError(
      f'the search closed every channel of {", ".join(closed)}, which nothing'
      ' bypasses, so no image reaches the classifier. Search in a new'
      f' --workdir with a smaller penalty than {penalty:g}, say'
      f' {penalty / 3:.2g}; the search result is kept'
    )
  gated = {'params': params, 'batch_stats': batch_stats, 'gates': gates}
  variables = mesh.put_replicated(
    surgery.prune_variables(gated, network.graph, small_graph)
  )
  comparison = evaluator.compare(
    (network.net, gated), (small, variables), 'validation'
  )
  return Pruned(keep, variables['params'], variables['batch_stats'], comparison)


class _Decided(NamedTuple):
  gates: Any  # 0 and 1
  keep: nn.Keep
  closed: list[str]  # gates that keep the image from the classifier
  small: Any  # the network with these channels
  small_graph: walk.Graph


def _decide(network: PrunableModel, gate_logits: Any, cut: Cut) -> _Decided:
  delta_end = cut.search.delta_end
  assert delta_end is not None
  hard = partial(
    channel_gates.hard_gates,
    delta_end=delta_end,
    threshold=cut.threshold,
    multiple=cut.multiple,
  )
  gates = jax.jit(hard)(gate_logits)
  keep = channel_gates.kept_channels(gates, network.graph.gates, network.known)
  small = surgery.with_keep(network.full, keep)
  graph = walk.graph_of(small, network.image_shape)
  closed = [gate for gate in graph.cut_off_by if not keep[gate]]
  return _Decided(gates, keep, closed, small, graph)
