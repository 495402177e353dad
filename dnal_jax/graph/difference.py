"""Where a network and its pruned form begin to differ."""

from functools import partial

from flax import linen
import jax
import numpy as np

from dnal_jax import nn
from dnal_jax.graph import surgery, walk


def first_difference(
  net: linen.Module,
  variables: surgery.Variables,
  small: linen.Module,
  small_variables: surgery.Variables,
  images: jax.Array,
  tolerance: float,
) -> str | None:
  """The first gate, in order of execution, whose layer's outputs differ.

  Compares the channels that the pruned network `small` has kept, on images
  [B, H, W, C]; differences within `tolerance`, absolute or relative, do not
  count. None if no outputs differ.
  """
  full = _gated_outputs(net, variables, images)
  pruned = _gated_outputs(small, small_variables, images)
  height, width, channels = images.shape[1:]
  for gate in walk.graph_of(small, (height, width, channels)).gates:
    m = full[gate]
    want = surgery.take_channels(
      np.asarray(m.x), m.ids, pruned[gate].ids, axis=-1
    )
    if not np.allclose(want, pruned[gate].x, rtol=tolerance, atol=tolerance):
      return gate
  return None


def _gated_outputs(net, variables, images) -> dict[str, nn.Features]:
  """{path of a gate: output of its layer}."""
  apply = partial(
    net.apply,
    capture_intermediates=_is_gated_output,
    mutable=['intermediates'],
  )
  _, captured = jax.jit(apply)(variables, images)
  outputs = jax.tree.leaves(
    captured['intermediates'], is_leaf=lambda m: isinstance(m, nn.Features)
  )
  return {m.gates[0]: m for m in outputs}


def _is_gated_output(layer: linen.Module, method: str) -> bool:
  is_gated = isinstance(layer, nn.ConvBn) and layer.gate is not None
  return is_gated and method == '__call__'
