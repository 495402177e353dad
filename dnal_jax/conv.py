"""How a convolution is computed on each platform; what it computes is fixed.

B batch, H height, W width, I input channels, O output channels, k kernel.
Layouts are [B, H, W, I] for images and [k, k, I, O] for kernels.
"""

from functools import partial

import jax
import jax.numpy as jnp

# On CPU, maps of fewer positions than this are multiplied as matrices.
# `benchmarks/conv_lowering.py` has the measurement: XLA's own convolution of
# 512 channels on a 2x2 map is about 100 times slower, on 4x4 neither wins.
_TINY_MAP = 16


def conv2d(
  x: jax.Array,  # [B, H, W, I] floating point
  kernel: jax.Array,  # [k, k, I, O]; depthwise [k, k, 1, O] with O = I
  *,
  stride: int = 1,
  depthwise: bool = False,
) -> jax.Array:  # [B, ceil(H / stride), ceil(W / stride), O]
  """Convolution with k // 2 zeros on every side, as in PyTorch (k odd).

  Flax's `SAME` pads on one side only when the stride is 2, which is another
  function. GPUs and TPUs get XLA's convolution; CPUs get it too, except where
  it is slower than the same sum written otherwise by an order of magnitude.
  """
  native = partial(_native, stride=stride, depthwise=depthwise)
  positions = -(-x.shape[1] // stride) * -(-x.shape[2] // stride)
  if depthwise:
    on_cpu = partial(_shifted_products, stride=stride)
  elif kernel.shape[0] == 1 or positions < _TINY_MAP:
    on_cpu = partial(_im2col, stride=stride)
  else:
    return native(x, kernel)
  return jax.lax.platform_dependent(x, kernel, cpu=on_cpu, default=native)


def _native(x, kernel, *, stride, depthwise):
  pad = kernel.shape[0] // 2
  return jax.lax.conv_general_dilated(
    x,
    kernel,
    window_strides=(stride, stride),
    padding=((pad, pad), (pad, pad)),
    dimension_numbers=('NHWC', 'HWIO', 'NHWC'),
    feature_group_count=x.shape[-1] if depthwise else 1,
  )


def _shifted_products(x, kernel, *, stride):
  """Depthwise: sum over the k * k taps of shifted image * weight."""
  taps = kernel.reshape(-1, kernel.shape[-1])
  windows = _windows(x, kernel.shape[0], stride)
  products = [w * tap for w, tap in zip(windows, taps, strict=True)]
  return sum(products[1:], products[0])


def _im2col(x, kernel, *, stride):
  """One matrix product: the k * k * I inputs of every output position."""
  windows = _windows(x, kernel.shape[0], stride)
  return jnp.concatenate(windows, -1) @ kernel.reshape(-1, kernel.shape[-1])


def _windows(x, k, stride):
  """The k * k shifts of x that one kernel position each sees."""
  pad = k // 2
  rows, columns = -(-x.shape[1] // stride), -(-x.shape[2] // stride)
  x = jnp.pad(x, ((0, 0), (pad, pad), (pad, pad), (0, 0)))
  return [
    x[
      :,
      i : i + (rows - 1) * stride + 1 : stride,
      j : j + (columns - 1) * stride + 1 : stride,
    ]
    for i in range(k)
    for j in range(k)
  ]
