"""Macs and parameters as functions of gates (ours; not in the paper).

For gates of 0 and 1 the number is that of the network with the channels whose
gates are 1, to the integer; between 0 and 1 it is differentiable. A convolution
costs k^2 * positions * (live inputs) * (live outputs) multiply-adds, a
depthwise one k^2 * positions * (live outputs); `live.py` says what lives.
"""

from collections.abc import Callable, Mapping
import dataclasses
import functools
import math
from typing import Any, Literal

import jax
import numpy as np

from dnal_jax import nn
from dnal_jax.cost.live import Live
from dnal_jax.graph import walk

Gates = Mapping[str, Any]  # gate path -> [n], numpy or jax


@dataclasses.dataclass(frozen=True, eq=False)
class Cost:
  """What a network costs for one image, by the gates of its channels.

  `of` maps live inputs and outputs of a layer to its share; `constant` is what
  no gate changes.
  """

  name: str  # 'macs' or 'params'
  graph: walk.Graph
  of: Callable[[walk.LayerSpec, Any, Any], Any]
  constant: int = 0

  def __call__(self, gates: Gates) -> Any:
    """The cost, given {path: values [n]} of all gates of the graph: an integer
    for integers 0 and 1 of numpy, else a scalar of the gates' dtype."""
    live = Live(self.graph, gates)
    total = self.constant
    for layer in self.graph.layers.values():
      n_in = 1 if layer.in_ids is None else live.inputs(layer)
      total = total + self.of(layer, n_in, live.outputs(layer))
    return total

  @functools.cached_property
  def full(self) -> int:
    """Of the network with all of its channels."""
    return self.of_kept(self.graph.gates)

  def of_kept(self, keep: nn.Keep) -> int:
    """Of the network with the channels `keep` of the graph's."""
    gates = {
      path: np.isin(ids, keep.get(path, ())).astype(np.int64)
      for path, ids in self.graph.gates.items()
    }
    return int(self(gates))


def macs(graph: walk.Graph) -> Cost:
  """Multiply-adds for one image."""

  def of(layer: walk.LayerSpec, n_in: Any, n_out: Any) -> Any:
    return layer.kernel**2 * layer.positions * n_in * n_out

  return Cost('macs', graph, of)


def params(graph: walk.Graph) -> Cost:
  """Trained parameters, without gates."""

  def of(layer: walk.LayerSpec, n_in: Any, n_out: Any) -> Any:
    per_output = 2 * layer.norm + layer.bias
    return n_out * (layer.kernel**2 * n_in + per_output)

  gated = Cost('params', graph, of)
  arrays = jax.tree.leaves(graph.shapes['params'])
  rest = sum(math.prod(a.shape) for a in arrays) - gated.full
  return Cost('params', graph, of, constant=rest)


KINDS: dict[Literal['macs', 'params'], Callable[[walk.Graph], Cost]] = {
  'macs': macs,
  'params': params,
}
