"""Layers over channel ids: convolution with BatchNorm, gate, linear, head.

B batch, H height, W width, C channels. Layers compute in the dtype of the
images they are given, with parameters and BatchNorm statistics in float32;
`Head` returns logits in float32 or better.
"""

import dataclasses

from flax import linen
import jax
import jax.numpy as jnp

from dnal_jax.nn.activations import relu
from dnal_jax.nn.features import Features, Width, act, select
from dnal_jax.ops import batch_norm, convolution

Initializer = jax.nn.initializers.Initializer


class ConvBn(linen.Module):
  """Convolution, then BatchNorm, producing the channels `width.ids`.

  A layer without outputs has no variables. A layer without inputs is what
  remains of it exactly: zero (plus its bias) through BatchNorm, a constant.
  """

  width: Width
  kernel: int
  stride: int = 1
  depthwise: bool = False
  bias: bool = False
  epsilon: float = 1e-5
  train: bool = False

  @linen.compact
  def __call__(self, m: Features) -> Features:
    if self.depthwise:
      m = select(m, self.width.ids)
    b, h, w, c = m.x.shape
    n = len(self.width.ids)
    out_shape = (b, -(-h // self.stride), -(-w // self.stride), n)
    x = jnp.zeros(out_shape, m.x.dtype)
    gates = () if self.width.gate is None else (self.width.gate,)
    if not n:
      return Features(x, (), gates, m.cut_off_by)
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
    y = batch_norm.BatchNorm(self.epsilon, self.train, name='bn')(x)
    return Features(y.x, self.width.ids, gates, m.cut_off_by, y)


class Gate(linen.Module):
  """Scales channel c by g[c], read from the variable collection `gates`.

  The network multiplies; `gating` decides by what. Ones at init. Behind a
  BatchNorm, its scale and bias are multiplied instead of the map: the same
  function, and under `jit` no pass over a map more (ours).
  """

  @linen.compact
  def __call__(self, m: Features) -> Features:
    path = '/'.join(self.path)
    if m.gates != (path,):
      raise ValueError(
        f"gate '{path}' stands behind a layer of width {m.gates!r}: give that"
        f" layer the width gated(self, '{self.name}', ...)"
      )
    if not m.ids:
      return dataclasses.replace(m, cut_off_by=(*m.cut_off_by, path))
    g = self.variable('gates', 'g', jnp.ones, (len(m.ids),), jnp.float32)
    if m.normalised:
      x = m.normalised.times(g.value)
    else:
      x = m.x * g.value.astype(m.x.dtype)
    return dataclasses.replace(m, x=x)


class Dense(linen.Module):
  """Linear layer with bias. Its outputs are never cut."""

  features: int
  kernel_init: Initializer = linen.initializers.normal(0.01)

  @linen.compact
  def __call__(self, m: Features) -> Features:
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
    return Features(x, tuple(range(self.features)), cut_off_by=m.cut_off_by)


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
      bn = batch_norm.BatchNorm(1e-5, self.train, name=f'bn{i}')
      m = act(lambda x, bn=bn: bn(x).x, m)
      m = act(relu, m)
    # A softmax over logits of 8 bits would see classes tie.
    m = act(lambda x: x.astype(jnp.promote_types(x.dtype, jnp.float32)), m)
    return Dense(self.classes, self.kernel_init, name='logits')(m).x


# Kernels [k, k, in, out] ~ N(0, sqrt(2 / (k * k * out))) (reference code).
_he_fan_out = linen.initializers.variance_scaling(2.0, 'fan_out', 'normal')
