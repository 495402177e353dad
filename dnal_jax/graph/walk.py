"""The graph of a network: which channels each layer reads and writes.

Produced by running the network's definition on shapes alone.
"""

import dataclasses
from typing import Any

from flax import linen
import jax
import jax.numpy as jnp

from dnal_jax import errors, nn

# 16 GiB in float32. Nothing as large as that is trained here, and JAX cannot
# trace shapes beyond some limits of its own.
MAX_PARAMS = 2**32


@dataclasses.dataclass(frozen=True)
class LayerSpec:
  """What one convolution or linear layer reads and writes."""

  in_ids: nn.Ids | None  # None: depthwise, an output reads its own channel
  out_ids: nn.Ids
  in_gates: tuple[str, ...]  # gates of the layers that wrote the input
  out_gate: str | None  # the gate that selects the outputs; None: never pruned
  kernel: int  # side in pixels; 1 for a linear layer
  positions: int  # output pixels of one image
  bias: bool
  norm: bool
  # Gates without channels that keep the image from reaching the input.
  cut_off_by: tuple[str, ...]
  out_readers: tuple[str, ...]  # gates of layers that alone read the outputs
  in_written: tuple[nn.Written, ...]  # what keeps the inputs alive

  @property
  def macs(self) -> int:
    """Multiply-adds for one image."""
    fan_in = 1 if self.in_ids is None else len(self.in_ids)
    return self.kernel**2 * fan_in * self.positions * len(self.out_ids)


@dataclasses.dataclass(frozen=True)
class Graph:
  """The layers, gates and variables of a network, full or pruned."""

  layers: dict[str, LayerSpec]  # by path, in order of execution
  gates: dict[str, nn.Ids]  # the channels of each gate that has any
  shapes: dict[str, Any]  # variables, as jax.ShapeDtypeStruct

  @property
  def cut_off_by(self) -> tuple[str, ...]:
    """Gates that together keep the image from the classifier; () if none do."""
    return self.layers['head/logits'].cut_off_by

  @property
  def needed_gates(self) -> tuple[str, ...]:
    """Gates on a way from the image to the classifier that has as few of them
    as any: a channel of each is enough for the image to reach it."""
    ways: dict[str, dict[str, None]] = {'': {}}

    def shortest(layer: LayerSpec) -> dict[str, None]:
      return min((ways[part.layer] for part in layer.in_written), key=len)

    for path, layer in self.layers.items():
      gate = () if layer.out_gate is None else (layer.out_gate,)
      own = dict.fromkeys((*gate, *layer.out_readers))
      ways[path] = {**shortest(layer), **own}
    return tuple(shortest(self.layers['head/logits']))


def graph_of(net: Any, image_shape: tuple[int, int, int]) -> Graph:
  """Traces `net` on one image of shape (height, width, channels).

  Raises:
    UserError: the network has more than MAX_PARAMS parameters.
  """
  graph, weights = Graph({}, {}, {}), 0

  def record(call, args, kwargs, context):
    nonlocal weights
    if context.method_name != '__call__':
      return call(*args, **kwargs)
    layer, path = context.module, '/'.join(context.module.path)
    weights += _kernel_size(layer, args)
    if weights > MAX_PARAMS:
      raise errors.UserError(
        f"up to layer '{path}' the network has {weights:,} parameters;"
        f' {MAX_PARAMS:,} is the maximum: make it narrower, or use smaller'
        ' images'
      )
    out = call(*args, **kwargs)
    if isinstance(layer, nn.ConvBn | nn.Dense):
      graph.layers[path] = _layer_spec(layer, args[0], out)
      if isinstance(layer, nn.ConvBn) and layer.gate is not None and out.ids:
        graph.gates['/'.join(layer.gate.path)] = out.ids
    return out

  image = jax.ShapeDtypeStruct((1, *image_shape), jnp.float32)
  with linen.intercept_methods(record):
    graph.shapes.update(jax.eval_shape(net.init, jax.random.key(0), image))
  return graph


def _kernel_size(layer: linen.Module, args: tuple[Any, ...]) -> int:
  """Numbers in the kernel of one of our layers, before it is created."""
  if isinstance(layer, nn.Dense):
    return len(args[0].ids) * layer.features
  if isinstance(layer, nn.ConvBn):
    fan_in = 1 if layer.depthwise else len(args[0].ids)
    return layer.kernel**2 * fan_in * len(layer.width.ids)
  return 0


def _layer_spec(layer, m: nn.Features, out: nn.Features) -> LayerSpec:
  is_conv = isinstance(layer, nn.ConvBn)
  return LayerSpec(
    in_ids=None if is_conv and layer.depthwise else m.ids,
    out_ids=out.ids,
    in_gates=m.gates,
    out_gate=next(iter(out.gates), None),
    kernel=layer.kernel if is_conv else 1,
    positions=out.x.shape[1] * out.x.shape[2] if is_conv else 1,
    bias=layer.bias if is_conv else True,
    norm=is_conv,
    cut_off_by=m.cut_off_by,
    out_readers=layer.width.readers if is_conv else (),
    in_written=m.written,
  )
