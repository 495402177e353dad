"""From searched gates to a smaller network that is checked to be equivalent.

The network is pruned, run beside the masked one (full size, closed gates at 0)
on the validation split, and handed over only if the two agree to rounding.
"""

from collections.abc import Callable
import dataclasses
from functools import partial
from typing import Any, NamedTuple

import jax
import numpy as np

from dnal_jax import errors, nn
from dnal_jax.graph import surgery, walk
from dnal_jax.models import Network
from dnal_jax.parallel import mesh
from dnal_jax.search import channel_gates
from dnal_jax.search.budget import Budget, Scores, Target
from dnal_jax.training import advice, evaluate
from dnal_jax.training.stages import Cut


@dataclasses.dataclass(frozen=True)
class PrunableModel:
  """A network, and the part of it that is left."""

  full: Network
  image_shape: tuple[int, int, int]  # height, width, channels
  full_graph: walk.Graph  # of `full`
  net: Network  # what is left
  graph: walk.Graph  # of `net`

  @classmethod
  def create(
    cls, full: Network, image_shape: tuple[int, int, int], keep: nn.Keep
  ) -> 'PrunableModel':
    """The channels `keep` of a full network; {} keeps all."""
    graph = walk.graph_of(full, image_shape)
    model = cls(full, image_shape, graph, full, graph)
    return model.with_channels(keep) if keep else model

  def with_channels(self, keep: nn.Keep) -> 'PrunableModel':
    """The same network with the channels `keep` of the full one."""
    net = surgery.with_keep(self.full, keep)
    graph = walk.graph_of(net, self.image_shape)
    return dataclasses.replace(self, net=net, graph=graph)

  @property
  def full_gates(self) -> dict[str, nn.Ids]:
    """Gate path -> all its channels."""
    return self.full_graph.gates

  def budget(self, target: Target) -> Budget | None:
    """What is left may cost, by a target of shares of the full network; None
    without a target."""
    return target.budget(self.graph, self.full_graph)

  @property
  def gated_channels(self) -> int:
    """How many channels of the full network have a gate."""
    return sum(map(len, self.full_gates.values()))

  @property
  def kept_channels(self) -> int:
    """How many of them are left."""
    return sum(map(len, self.graph.gates.values()))

  def initial_gate_logits(self) -> Any:
    """Gate logits with which a search begins: 0, which is a gate of 1/2."""
    gates = self.graph.shapes.get('gates', {})
    return jax.tree.map(lambda a: np.zeros(a.shape, a.dtype), gates)


class Pruned(NamedTuple):
  """A pruned network and how it compares with the masked one."""

  model: PrunableModel
  keep: nn.Keep
  variables: Any  # params, batch_stats, and open gates
  comparison: evaluate.Comparison  # on validation


def pruning_warning(
  model: PrunableModel, gate_logits: Any, cut: Cut
) -> str | None:
  """What would be wrong with pruning if the search ended now; None if
  nothing is."""
  decision = _decide(model, gate_logits, cut)
  now = 'as the gates are now'
  if sum(map(len, decision.keep.values())) == model.kept_channels:
    cause, fix = advice.why_none(decision.soft, cut)
    return f'{now}, no channel would be pruned: {cause}; try {fix}'
  if decision.closed:
    cause, fix = advice.why_all(decision.soft, decision.closed, cut)
    return (
      f'{now}, every channel would be pruned of {", ".join(decision.closed)},'
      f' which nothing bypasses: {cause}; try {fix}'
    )
  return None


def closed_layers(model: PrunableModel, gates: Any) -> list[str]:
  """Gates whose values are all below LOW and that nothing bypasses, so that no
  image reaches the classifier."""
  values = channel_gates.by_path(jax.device_get(gates))
  if not any((g < channel_gates.LOW).all() for g in values.values()):
    return []
  not_low = jax.tree.map(lambda g: g >= channel_gates.LOW, gates)
  return _keeping(model, not_low)[1]


def prune_model(
  model: PrunableModel,
  params: Any,
  gate_logits: Any,
  batch_stats: Any,
  cut: Cut,
  *,
  scores: Scores | None = None,
  evaluator: evaluate.Evaluator,
  on_decision: Callable[[nn.Keep], None],
) -> Pruned:
  """Prunes to the gates above the threshold at the search's last delta, and to
  widths that are multiples (`channel_gates.hard_gates`); with a target, to what
  this allows, in the order of `scores`, or of the gates if they are None.

  `on_decision` is called with the channels to keep before anything is built of
  them, so that they are on disk even if that fails.

  Raises:
    SearchFailed: closed gates keep the image from the classifier, or most gates
      are undecided.
    RuntimeError: the pruned and the masked network are not the same function.
  """
  gates, soft, keep, closed, small = _decide(model, gate_logits, cut, scores)
  on_decision(keep)
  if closed:
    cause, fix = advice.why_all(soft, closed, cut)
    raise errors.SearchFailed(
      f'every channel would be pruned of {", ".join(closed)}, which nothing'
      f' bypasses, so no image would reach the classifier: {cause}.'
      f' {advice.AGAIN} with {fix}'
    )
  if not cut.target:  # which is met by ranking channels
    advice.check_decided(soft, cut)
  masked = {'params': params, 'batch_stats': batch_stats, 'gates': gates}
  pruned = surgery.prune_variables(masked, model.graph, small.graph)
  pruned = mesh.put_replicated(pruned)
  comparison = evaluator.compare(
    (model.net, masked), (small.net, pruned), 'validation'
  )
  return Pruned(small, keep, pruned, comparison)


class _Decision(NamedTuple):
  gates: Any  # 0 and 1
  soft: dict[str, Any]  # {path of a gate: its soft values, at the last delta}
  keep: nn.Keep
  closed: list[str]  # gates that keep the image from the classifier
  small: PrunableModel  # with these channels


def _decide(
  model: PrunableModel,
  gate_logits: Any,
  cut: Cut,
  scores: Scores | None = None,
) -> _Decision:
  budget, soft = model.budget(cut.target), {}
  if cut.search is not None:
    soft = jax.jit(channel_gates.soft_gates)(gate_logits, cut.search.delta_end)
    soft = channel_gates.by_path(jax.device_get(soft))
  if budget is None:
    delta_end = cut.searched.delta_end
    assert delta_end is not None
    assert cut.threshold is not None
    hard = partial(
      channel_gates.hard_gates,
      delta_end=delta_end,
      threshold=cut.threshold,
      multiple=cut.multiple,
    )
    gates = jax.jit(hard)(gate_logits)
  else:
    by_gates: Scores = jax.device_get(channel_gates.by_path(gate_logits))
    kept = budget.decide(scores or by_gates, cut.multiple)
    gates = channel_gates.from_paths(
      {path: mask.astype(np.float32) for path, mask in kept.items()}
    )
  return _Decision(gates, soft, *_keeping(model, gates))


def _keeping(
  model: PrunableModel, gates: Any
) -> tuple[nn.Keep, list[str], PrunableModel]:
  """Channels whose gates are not 0; gates without any that keep the image from
  the classifier; and the network of these channels."""
  keep = channel_gates.kept_channels(gates, model.graph.gates, model.full_gates)
  small = model.with_channels(keep)
  # Those that the search has closed: a vanished branch has others besides.
  closed = [gate for gate in small.graph.cut_off_by if not keep[gate]]
  return keep, closed, small
