"""From searched gates to a smaller network that is proved to be the same.

The network is cut, run against the hard-gated one on the validation split,
and handed over only if the two agree to rounding.
"""

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import jax
import numpy as np

from dnal_jax import compact, errors, evaluate, gating, layers, mesh
from dnal_jax.stages import Stage


class Pruned(NamedTuple):
  """A compact network and how it compares with what it was cut from."""

  keep: layers.Keep
  params: Any
  batch_stats: Any
  comparison: evaluate.Comparison  # on validation


class Subnet:
  """A network, and the part of it that is left by now."""

  def __init__(self, full: Any, image_shape: tuple[int, int, int]):
    self.full, self._image_shape = full, image_shape
    self.cut({})
    self.known = self.walk.gates  # gate -> ids of all its channels
    self.gates = self.kept  # channels that have a gate

  def cut(self, keep: layers.Keep) -> None:
    """From now on the network with these channels; {}: with all."""
    self.net = compact.with_keep(self.full, keep)
    self.walk = compact.walk(self.net, self._image_shape)
    self.kept = sum(map(len, self.walk.gates.values()))

  def zeros(self) -> Any:
    """Logits with which a network begins: all gates undecided."""
    gates = self.walk.shapes.get('gates', {})
    return jax.tree.map(lambda a: np.zeros(a.shape, a.dtype), gates)


def prune(
  net: Any,
  params: Any,
  logits: Any,
  batch_stats: Any,
  *,
  search: Stage,
  threshold: float,
  multiple: int,
  image_shape: tuple[int, int, int],
  evaluator: evaluate.Evaluator,
  decided: Callable[[layers.Keep], None],
) -> Pruned:
  """Cuts `net` to the gates above `threshold` at the search's last delta, and
  to widths that are multiples of `multiple` (`gating.hard`).

  `decided` is told the surviving channels first, so that they are kept even
  if nothing can be built on them.

  Raises:
    UserError: closed gates keep the image from the classifier.
    RuntimeError: the two networks are not the same function.
  """
  assert search.delta_end is not None
  hard = partial(
    gating.hard,
    delta_end=search.delta_end,
    threshold=threshold,
    multiple=multiple,
  )
  gated = {
    'params': params,
    'batch_stats': batch_stats,
    'gates': jax.jit(hard)(logits),
  }
  walk = compact.walk(net, image_shape)
  known = compact.walk(compact.with_keep(net, {}), image_shape).gates
  keep = gating.keep(gated['gates'], walk.gates, known)
  decided(keep)
  small = compact.with_keep(net, keep)
  small_walk = compact.walk(small, image_shape)
  closed = [gate for gate in small_walk.cut_off_by if not keep[gate]]
  if closed:
    raise errors.UserError(
      f'the search closed every channel of {", ".join(closed)}, which nothing'
      ' bypasses, so no image reaches the classifier. Search in a new'
      f' --workdir with a smaller penalty than {search.penalty:g}, say'
      f' {search.penalty / 3:.2g}; the search result is kept'
    )
  variables = mesh.put_whole(compact.cut(gated, walk, small_walk))
  comparison = evaluator.compare((net, gated), (small, variables), 'validation')
  return Pruned(keep, variables['params'], variables['batch_stats'], comparison)
