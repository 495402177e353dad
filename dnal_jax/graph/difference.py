"""Where a network and the one pruned from it differ."""

from flax import linen
import jax
import numpy as np

from dnal_jax import nn
from dnal_jax.graph import surgery


def first_difference(
  net: linen.Module,
  variables: surgery.Variables,
  small: linen.Module,
  small_variables: surgery.Variables,
  images: jax.Array,
  tolerance: float,
) -> str | None:
  """Path of the first gate whose kept channels differ between two networks."""
  outputs = [
    _gate_outputs(n, v, images)
    for n, v in ((net, variables), (small, small_variables))
  ]
  for path, (ids, x) in outputs[1].items():
    full_ids, full_x = outputs[0][path]
    full_x = surgery.take_channels(full_x, full_ids, ids, axis=-1)
    if not np.allclose(full_x, x, rtol=tolerance, atol=tolerance):
      return path
  return None


def _gate_outputs(net, variables, images):
  found = {}

  def record(call, args, kwargs, context):
    out = call(*args, **kwargs)
    gate = context.module
    if isinstance(gate, nn.Gate) and out.ids:
      found['/'.join(gate.path)] = out.ids, np.asarray(out.x)
    return out

  with linen.intercept_methods(record):
    net.apply(variables, images)
  return found
