"""Layers over channel ids: convolution with BatchNorm and gate, linear, head.

B batch, H height, W width, C channels. Layers compute in the dtype of their
input; parameters, gates and BatchNorm statistics are float32, and `Head`
returns logits in float32 or wider.
"""

from flax import linen
import jax
import jax.numpy as jnp

from dnal_jax.nn.activations import relu
from dnal_jax.nn.features import (
  Features,
  Width,
  act,
  layer_output,
  select,
  ungated,
)
from dnal_jax.ops import batch_norm, convolution

Initializer = jax.nn.initializers.Initializer


class Gate(linen.Module):
  """One factor per channel of a layer, in the variable collection `gates`.

  Create it where the layer is created, with the name of the layer's width, and
  pass it to the layer. Initialised with ones; the search decides the values.
  """

  @linen.compact
  def __call__(self, n: int) -> jax.Array:
    """The factors of a layer of n channels: [n] float32."""
    return self.variable('gates', 'g', jnp.ones, (n,), jnp.float32).value


class ConvBn(linen.Module):
  """gate * BatchNorm(convolution(x)), producing the channels `width.ids`.

  Where several layers have the width of one gate, as the convolution before a
  depthwise convolution, pass the gate to the last of them only.

  A layer without outputs has no variables. Without inputs, the convolution is 0
  and the output is a constant: gate * BatchNorm(bias).

  Raises:
    TypeError: `width` is a number and not a `Width`.
    ValueError: `gate` is not the gate of `width`.
  """

  width: Width
  kernel: int
  stride: int = 1
  depthwise: bool = False
  bias: bool = False
  gate: Gate | None = None
  epsilon: float = 1e-5
  train: bool = False

  def __post_init__(self) -> None:
    if not isinstance(self.width, Width):
      raise TypeError(
        f"layer '{self.name}' has the width {self.width!r}: make it with"
        " nn.gated(self, 'NAME', N), or with nn.ungated(N) for a layer that is"
        ' never pruned'
      )
    super().__post_init__()

  @linen.compact
  def __call__(self, m: Features) -> Features:
    if self.depthwise:
      m = select(m, self.width.ids)
    applied = _applied_gates(self)
    b, h, w, c = m.x.shape
    n = len(self.width.ids)
    out_shape = (b, -(-h // self.stride), -(-w // self.stride), n)
    x = jnp.zeros(out_shape, m.x.dtype)
    path = '/'.join(self.path)
    if not n:
      return layer_output(x, path, self.width, (*m.cut_off_by, *applied))
    if c:
      shape = (self.kernel, self.kernel, 1 if self.depthwise else c, n)
      kernel = self.param('kernel', _he_fan_out, shape, jnp.float32)
      x = convolution.conv2d(
        m.x,
        kernel.astype(x.dtype),
        stride=self.stride,
        depthwise=self.depthwise,
      )
    if self.bias:
      bias = self.param('bias', linen.initializers.zeros, (n,), jnp.float32)
      x = x + bias.astype(x.dtype)
    g = None if self.gate is None else self.gate(n)
    x = batch_norm.BatchNorm(self.epsilon, self.train, name='bn')(x, g)
    return layer_output(x, path, self.width, m.cut_off_by)


class Dense(linen.Module):
  """Linear layer with bias, whose outputs are never pruned."""

  features: int
  kernel_init: Initializer = linen.initializers.normal(0.01)

  @linen.compact
  def __call__(self, m: Features) -> Features:  # [B, n] -> [B, features]
    n = len(m.ids)
    x = jnp.zeros((m.x.shape[0], self.features), m.x.dtype)
    if n:
      shape = (n, self.features)
      kernel = self.param('kernel', self.kernel_init, shape, jnp.float32)
      x = m.x @ kernel.astype(x.dtype)
    bias = self.param(
      'bias', linen.initializers.zeros, (self.features,), jnp.float32
    )
    x = x + bias.astype(x.dtype)
    width = ungated(self.features)
    return layer_output(x, '/'.join(self.path), width, m.cut_off_by)


class Head(linen.Module):
  """Classifier: hidden layers with BatchNorm and ReLU, then the logits."""

  classes: int
  hidden: tuple[int, ...] = ()
  train: bool = False
  kernel_init: Initializer = linen.initializers.normal(0.01)

  @linen.compact
  def __call__(self, m: Features) -> jax.Array:  # [B, classes] float32
    for i, features in enumerate(self.hidden, 1):
      m = Dense(features, self.kernel_init, name=f'fc{i}')(m)
      m = act(batch_norm.BatchNorm(1e-5, self.train, name=f'bn{i}'), m)
      m = act(relu, m)
    # In bfloat16, with 8 bits, classes would tie.
    m = act(lambda x: x.astype(jnp.promote_types(x.dtype, jnp.float32)), m)
    return Dense(self.classes, self.kernel_init, name='logits')(m).x


def _applied_gates(layer: ConvBn) -> tuple[str, ...]:
  """The path of the layer's gate, which is that of its width; () if none."""
  if layer.gate is None:
    return ()
  path = '/'.join(layer.gate.path)
  if path != layer.width.gate:
    raise ValueError(
      f"layer '{'/'.join(layer.path)}' has the gate '{path}' and a width of"
      f' gate {layer.width.gate!r}: make the width with nn.gated(self,'
      f" '{layer.gate.name}', ...) or nn.chain(self, {layer.gate.name}=...)"
    )
  return (path,)


# Kernels [k, k, in, out] ~ N(0, 2 / (k * k * out)) (reference code).
_he_fan_out = linen.initializers.variance_scaling(2.0, 'fan_out', 'normal')
