"""Macs and parameters as functions of gates (ours; not in the paper).

For gates of 0 and 1 the number is that of the network with the channels whose
gates are 1, to the integer; between 0 and 1 it is differentiable:

* A channel of a gated layer lives with its gate g, times 1 - prod(1 - g) over
  the channels of each layer that alone reads it (`nn.chain`).
* A channel of a sum lives if any layer that writes it does: 1 - prod(1 - l).
* A convolution costs k^2 * positions * (live inputs) * (live outputs)
  multiply-adds, a depthwise one k^2 * positions * (live outputs).
"""

from collections.abc import Callable, Mapping
import dataclasses
import functools
import math
from typing import Any, Literal

import jax
import numpy as np

from dnal_jax import nn
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
    live = _Live(gates)
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


class _Live:
  """How far the channels of layers live, for gate values; each number is
  computed once, however many layers read it."""

  def __init__(self, gates: Gates):
    self._gates = gates
    self._of_width: dict[tuple[str, ...], Any] = {}
    self._any: dict[tuple[str, ...], Any] = {}
    self._dead: dict[Any, Any] = {}
    self._inputs: dict[Any, Any] = {}

  def outputs(self, layer: walk.LayerSpec) -> Any:
    """How many outputs of a layer live."""
    if layer.out_gate not in self._gates:
      return len(layer.out_ids)
    return self._width((layer.out_gate, *layer.out_readers)).sum()

  def inputs(self, layer: walk.LayerSpec) -> Any:
    """How many inputs of a layer that reads a whole map live."""
    key = layer.in_ids, layer.in_written
    if key not in self._inputs:
      if any(
        part.width.gate not in self._gates
        and len(part.ids) == len(layer.in_ids or ())
        for part in layer.in_written
      ):
        self._inputs[key] = len(layer.in_ids or ())
      else:
        dead = self._dead_channels(layer.in_ids or (), layer.in_written)
        self._inputs[key] = len(layer.in_ids or ()) - dead.sum()
    return self._inputs[key]

  def _width(self, gates: tuple[str, ...]) -> Any:
    """[n], the channels of the first of the gates, whose readers follow."""
    if gates not in self._of_width:
      values = self._gates[gates[0]]
      if len(gates) > 1:
        values = values * self._any_of(gates[1:])
      self._of_width[gates] = values
    return self._of_width[gates]

  def _any_of(self, gates: tuple[str, ...]) -> Any:
    """Whether any channel of that width lives."""
    if gates not in self._any:
      self._any[gates] = 1 - (1 - self._width(gates)).prod()
    return self._any[gates]

  def _dead_channels(self, ids: nn.Ids, written: tuple[nn.Written, ...]) -> Any:
    """[len(ids)], the product of 1 - l over all layers that write a channel.

    Sums share their tails: the shortcut of a block is the end of its list.
    """
    if not written:
      return np.ones(len(ids), np.int64)
    key = ids, written
    if key not in self._dead:
      rest = self._dead_channels(ids, written[1:])
      self._dead[key] = rest * (1 - self._spread(written[0], ids))
    return self._dead[key]

  def _spread(self, part: nn.Written, ids: nn.Ids) -> Any:
    """[len(ids)], how far each channel lives by one layer that writes it."""
    column = {c: i for i, c in enumerate(part.width.ids)}
    source = dict(zip(part.ids, part.channels, strict=True))
    index = np.array([column.get(source.get(i, -1), -1) for i in ids])
    if part.width.gate is None or part.width.gate not in self._gates:
      return (index >= 0).astype(np.int64)
    live = self._width((part.width.gate, *part.width.readers))
    return live[index] * (index >= 0)
