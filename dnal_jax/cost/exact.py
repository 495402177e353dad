"""Parameters and multiply-adds of a network, full or pruned."""

import dataclasses
import math
from typing import Any

import jax

from dnal_jax.cost import reference
from dnal_jax.graph import surgery, walk


@dataclasses.dataclass(frozen=True)
class Counts:
  """Cost of a network: trained parameters (no gates), multiply-adds an image.

  `reference_*` are the paper's: see `reference_counts`.
  """

  params: int
  macs: int
  reference_params: int
  reference_macs: int


def count(net: Any, image_shape: tuple[int, int, int]) -> Counts:
  """Both counts of a full or compact network, as integers."""
  this, whole = (
    walk.graph_of(n, image_shape) for n in (net, surgery.with_keep(net, {}))
  )
  return Counts(
    sum(math.prod(a.shape) for a in jax.tree.leaves(this.shapes['params'])),
    sum(site.macs for site in this.sites.values()),
    *reference.reference_counts(whole, net.keep),
  )
