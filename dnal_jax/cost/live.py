"""Which channels of a network live, given its gates.

* A channel of a gated layer lives with its gate g, times 1 - prod(1 - g) over
  the channels of each layer that alone reads it (`nn.chain`).
* A channel of a sum lives if any layer that writes it does: 1 - prod(1 - l).
"""

from collections.abc import Mapping
from typing import Any

import numpy as np

from dnal_jax import nn
from dnal_jax.graph import walk


class Live:
  """How far the channels of a network live, for values of all of its gates.

  Each number is computed once, however many layers read it.
  """

  def __init__(self, graph: walk.Graph, gates: Mapping[str, Any]):
    self._graph, self._gates = graph, gates
    self._of_width: dict[tuple[str, ...], Any] = {}
    self._any: dict[tuple[str, ...], Any] = {}
    self._dead: dict[Any, Any] = {}
    self._inputs: dict[Any, Any] = {}

  def outputs(self, layer: walk.LayerSpec) -> Any:
    """How many outputs of a layer live."""
    if layer.out_gate is None or layer.out_gate not in self._gates:
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

  def reaches_classifier(self) -> bool:
    """Whether the image does, for gates of 0 and 1."""
    reached = {''}
    for path, layer in self._graph.layers.items():
      read = any(part.layer in reached for part in layer.in_written)
      if read and self.outputs(layer):
        reached.add(path)
    return 'head/logits' in reached

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
