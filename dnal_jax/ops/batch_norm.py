"""Batch normalisation that reads and writes each map as seldom as can be.

B batch, C channels; `...` are the positions of a map, if it has any. Under
`jit` on a sharded batch, the statistics are those of the global batch.
"""

from collections.abc import Callable
from functools import partial
from typing import NamedTuple

from flax import linen
import jax
from jax import lax
import jax.numpy as jnp

from dnal_jax.ops import convolution


class Scalable(NamedTuple):
  """A map [B, ..., C], and the same map times a factor [C] of its channels."""

  x: jax.Array
  times: Callable[[jax.Array], jax.Array]


class BatchNorm(linen.Module):
  """y = scale * (x - mean) / sqrt(var + epsilon) + bias, over the batch in
  training, over running averages otherwise (1502.03167).

  y times a factor is computed with scale and bias times that factor: under
  `jit`, neither it nor its gradient, which comes from theirs, reads or writes
  one map more than y. Parameters and statistics are those of Flax's
  `BatchNorm`, in float32.
  """

  epsilon: float
  train: bool
  momentum: float = 0.9  # share of the old average that a step keeps

  @linen.compact
  def __call__(self, x: jax.Array) -> Scalable:  # of [B, ..., C]
    c = x.shape[-1:]
    scale = self.param('scale', linen.initializers.ones, c, jnp.float32)
    bias = self.param('bias', linen.initializers.zeros, c, jnp.float32)
    averages = [
      self.variable('batch_stats', name, init, c, jnp.float32)
      for name, init in (('mean', jnp.zeros), ('var', jnp.ones))
    ]
    if self.train:
      moments = lax.stop_gradient(_moments(x))
      if not self.is_initializing():
        for average, value in zip(averages, moments, strict=True):
          keep = self.momentum
          average.value = keep * average.value + (1 - keep) * value
      normalised = partial(_standardised, self.epsilon)
    else:
      moments = [average.value for average in averages]
      normalised = partial(_with_constants, self.epsilon)

    @jax.named_scope('bn')  # in profiles, wherever it is called
    def times(factor):
      return normalised(x, scale * factor, bias * factor, *moments)

    return Scalable(normalised(x, scale, bias, *moments), times)


def _with_constants(epsilon, x, scale, bias, mean, var):
  by = scale * lax.rsqrt(var + epsilon)
  # x - mean first would keep more digits where the mean is a large multiple of
  # the deviation, and take another map; the variance has lost them already.
  return (x * by + (bias - mean * by)).astype(x.dtype)


@partial(jax.custom_vjp, nondiff_argnums=(0,))
def _standardised(epsilon, x, scale, bias, mean, var):
  """Has the derivative by x that counts in that mean and var are its moments,
  and none by them. Autodiff would write one more map forwards and two more
  backwards."""
  return _with_constants(epsilon, x, scale, bias, mean, var)


def _forward(epsilon, x, scale, bias, mean, var):
  y = _standardised(epsilon, x, scale, bias, mean, var)
  return y, (x, scale, bias, mean, var)


def _backward(epsilon, residuals, dy):
  x, scale, bias, mean, var = residuals
  wide = partial(jnp.asarray, dtype=mean.dtype)
  inverse = lax.rsqrt(var + epsilon)
  d_bias = convolution.channel_sums(wide(dy))
  d_scale = convolution.channel_sums(wide(dy) * (wide(x) - mean)) * inverse
  n = x.size // x.shape[-1]
  # dx = scale * inverse * (dy - d_bias/n - (x - mean) * inverse * d_scale/n)
  along_dy = scale * inverse
  along_x = -along_dy * inverse * d_scale / n
  constant = -along_dy * d_bias / n - along_x * mean
  dx = (wide(dy) * along_dy + (wide(x) * along_x + constant)).astype(x.dtype)
  zero = jnp.zeros_like(mean)
  return (
    dx,
    d_scale.astype(scale.dtype),
    d_bias.astype(bias.dtype),
    zero,
    zero,
  )


_standardised.defvjp(_forward, _backward)


def _moments(x):
  """Mean and variance [C] of each channel, in float32 or wider."""
  x = x.astype(jnp.promote_types(x.dtype, jnp.float32))
  n = x.size // x.shape[-1]
  mean = convolution.channel_sums(x) / n
  # E[x^2] - E[x]^2 takes no map of differences.
  return mean, jnp.maximum(
    0.0, convolution.channel_sums(x * x) / n - mean * mean
  )
