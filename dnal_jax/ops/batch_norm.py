"""Batch normalisation with few passes over each feature map.

B batch, C channels; `...` are the positions of a map, if it has any. Under
`jit` with a sharded batch, the statistics are those of the global batch.
"""

from functools import partial

from flax import linen
import jax
from jax import lax
import jax.numpy as jnp

from dnal_jax.ops import convolution


class BatchNorm(linen.Module):
  """y = factor * (scale * (x - mean) / sqrt(var + epsilon) + bias).

  mean and var [C] are those of the batch in training, running averages
  otherwise (1502.03167). `factor` multiplies scale and bias, so that neither it
  nor its gradient needs another pass over the map (ours). Parameters and
  statistics are those of Flax's `BatchNorm`, in float32.
  """

  epsilon: float
  train: bool
  momentum: float = 0.9  # weight of the old average in each update

  @linen.compact
  def __call__(
    self,
    x: jax.Array,  # [B, ..., C] floating point
    factor: jax.Array | None = None,  # [C] float32; None: 1
  ) -> jax.Array:  # as x
    c = x.shape[-1:]
    scale = self.param('scale', linen.initializers.ones, c, jnp.float32)
    bias = self.param('bias', linen.initializers.zeros, c, jnp.float32)
    averages = [
      self.variable('batch_stats', name, init, c, jnp.float32)
      for name, init in (('mean', jnp.zeros), ('var', jnp.ones))
    ]
    if factor is not None:
      scale, bias = scale * factor, bias * factor
    if not self.train:
      moments = [average.value for average in averages]
      return _normalise(self.epsilon, x, scale, bias, *moments)
    moments = lax.stop_gradient(_moments(x))
    if not self.is_initializing():
      for average, value in zip(averages, moments, strict=True):
        keep = self.momentum
        average.value = keep * average.value + (1 - keep) * value
    return _normalise_batch(self.epsilon, x, scale, bias, *moments)


def _normalise(epsilon, x, scale, bias, mean, var):
  slope = scale * lax.rsqrt(var + epsilon)
  # x - mean first would keep more digits where the mean is a large multiple of
  # the deviation, at the cost of another map; the variance has lost them, too.
  return (x * slope + (bias - mean * slope)).astype(x.dtype)


@partial(jax.custom_vjp, nondiff_argnums=(0,))
def _normalise_batch(epsilon, x, scale, bias, mean, var):
  """`_normalise` where mean and var are the moments of x.

  The derivative with respect to x includes that by way of the moments; the
  derivatives with respect to mean and var are zero. Autodiff would write one
  more map in the forward pass and two more in the backward pass.
  """
  return _normalise(epsilon, x, scale, bias, mean, var)


def _forward(epsilon, x, scale, bias, mean, var):
  y = _normalise_batch(epsilon, x, scale, bias, mean, var)
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


_normalise_batch.defvjp(_forward, _backward)


def _moments(x):
  """Mean and variance [C] of each channel, in float32 or wider."""
  x = x.astype(jnp.promote_types(x.dtype, jnp.float32))
  n = x.size // x.shape[-1]
  mean = convolution.channel_sums(x) / n
  # E[x^2] - E[x]^2 needs no map of differences.
  return mean, jnp.maximum(
    0.0, convolution.channel_sums(x * x) / n - mean * mean
  )
