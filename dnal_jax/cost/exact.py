"""Parameters and multiply-adds of a network, full or pruned."""

import dataclasses
import math
from typing import Any

import jax

from dnal_jax import nn
from dnal_jax.cost import reference
from dnal_jax.graph import surgery, walk


@dataclasses.dataclass(frozen=True)
class Counts:
  """Cost of a network: trained parameters without gates, macs of one image.

  `reference_*` are counted as in the paper: see `reference_counts`.
  """

  params: int
  macs: int  # multiply-adds
  reference_params: int
  reference_macs: int
  weight_bytes: int  # of all its arrays, as in the file of weights


def count(net: Any, image_shape: tuple[int, int, int]) -> Counts:
  """Exact and reference counts of a network, full or pruned.

  `image_shape` is (height, width, channels).
  """
  full = graph = walk.graph_of(net, image_shape)
  if net.keep:
    full = walk.graph_of(surgery.with_keep(net, {}), image_shape)
  return of_graph(graph, full, net.keep)


def of_graph(graph: walk.Graph, full: walk.Graph, keep: nn.Keep) -> Counts:
  """`count` of the channels `keep` of a network, from its graph and from that
  of the full network: to trace a deep network takes seconds."""
  arrays = jax.tree.leaves(graph.shapes)
  return Counts(
    sum(math.prod(a.shape) for a in jax.tree.leaves(graph.shapes['params'])),
    sum(layer.macs for layer in graph.layers.values()),
    *reference.reference_counts(full, keep),
    sum(math.prod(a.shape) * a.dtype.itemsize for a in arrays),
  )
