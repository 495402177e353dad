"""The graph of a network: what each layer reads, writes and costs.

Running a network's definition on shapes alone gives, for each layer, the
channel ids it reads and writes.
"""

import dataclasses
from typing import Any

from flax import linen
import jax
import jax.numpy as jnp

from dnal_jax import errors, nn

# Of a network that is walked over, 16 GiB in float32: nothing as large as that
# is trained here, and shapes beyond some of JAX's own limits may not be traced.
MAX_PARAMS = 2**32


@dataclasses.dataclass(frozen=True)
class LayerSpec:
  """What one convolution or linear layer reads and writes."""

  ins: nn.Ids | None  # None: depthwise, an output reads its own channel
  outs: nn.Ids
  in_gates: tuple[str, ...]
  out_gate: str | None
  kernel: int
  positions: int  # output pixels of one image
  bias: bool
  norm: bool
  cut_off_by: tuple[
    str, ...
  ]  # gates that keep the image from reaching the input

  @property
  def macs(self) -> int:
    """Multiply-adds of one image."""
    fan_in = 1 if self.ins is None else len(self.ins)
    return self.kernel**2 * fan_in * self.positions * len(self.outs)


@dataclasses.dataclass(frozen=True)
class Graph:
  """All that a network's definition says about one of its forms."""

  sites: dict[str, LayerSpec]  # by path, in order of execution
  gates: dict[str, nn.Ids]  # channels behind each gate that has any
  shapes: dict[str, Any]  # variables, as jax.ShapeDtypeStruct

  @property
  def cut_off_by(self) -> tuple[str, ...]:
    """Gates that together keep the image from the classifier; () if none."""
    return self.sites['head/logits'].cut_off_by


def graph_of(net: Any, image_shape: tuple[int, int, int]) -> Graph:
  """Runs `net` on shapes alone; `image_shape` is (height, width, channels).

  Raises:
    UserError: it has more parameters than MAX_PARAMS.
  """
  found, weights = Graph({}, {}, {}), 0

  def record(call, args, kwargs, context):
    nonlocal weights
    if context.method_name != '__call__':
      return call(*args, **kwargs)
    layer, path = context.module, '/'.join(context.module.path)
    weights += _weights(layer, args)
    if weights > MAX_PARAMS:
      raise errors.UserError(
        f"with layer '{path}' the network has {weights:,} parameters, and"
        f' {MAX_PARAMS:,} is the most; make it narrower, or its images smaller'
      )
    out = call(*args, **kwargs)
    if isinstance(layer, nn.ConvBn | nn.Dense):
      found.sites[path] = _layer_spec(layer, args[0], out)
    elif isinstance(layer, nn.Gate) and out.ids:
      found.gates[path] = out.ids
    return out

  image = jax.ShapeDtypeStruct((1, *image_shape), jnp.float32)
  with linen.intercept_methods(record):
    found.shapes.update(jax.eval_shape(net.init, jax.random.key(0), image))
  return found


def _weights(layer: linen.Module, args: tuple[Any, ...]) -> int:
  """Size of the kernel of a layer of ours, before it is made."""
  if isinstance(layer, nn.Dense):
    return len(args[0].ids) * layer.features
  if isinstance(layer, nn.ConvBn):
    fan_in = 1 if layer.depthwise else len(args[0].ids)
    return layer.kernel**2 * fan_in * len(layer.width.ids)
  return 0


def _layer_spec(layer, m: nn.Features, out: nn.Features) -> LayerSpec:
  is_conv = isinstance(layer, nn.ConvBn)
  return LayerSpec(
    ins=None if is_conv and layer.depthwise else m.ids,
    outs=out.ids,
    in_gates=m.gates,
    out_gate=next(iter(out.gates), None),
    kernel=layer.kernel if is_conv else 1,
    positions=out.x.shape[1] * out.x.shape[2] if is_conv else 1,
    bias=layer.bias if is_conv else True,
    norm=is_conv,
    cut_off_by=m.cut_off_by,
  )
