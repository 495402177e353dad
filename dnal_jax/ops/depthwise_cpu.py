"""Shifted views of maps, and depthwise convolutions that are fast on a CPU:
sums over the k * k taps of shifted map times weight.

B batch, H height, W width, C channels, k kernel; kernels are [k, k, 1, C], and
dy is the gradient by the output [B, H', W', C]. Measured beside XLA's own in
`benchmarks/conv_lowering.py`, table in RESULTS.md.
"""

import jax
from jax import lax
import jax.numpy as jnp


def convolution(x, kernel, stride: int) -> jax.Array:
  shifts = windows(x, len(kernel), stride, len(kernel) // 2)
  return _sum_of_products(shifts, kernel)


def input_gradient(dy, kernel, x, stride: int) -> jax.Array:
  k = len(kernel)
  margins = [(*margin(n, k, stride), stride - 1) for n in x.shape[1:3]]
  dy = lax.pad(dy, jnp.zeros((), dy.dtype), [(0, 0, 0), *margins, (0, 0, 0)])
  return _sum_of_products(windows(dy, k, 1, pad=0), kernel[::-1, ::-1])


def kernel_gradient(dy, kernel, x, stride: int) -> jax.Array:
  """Image by image, so that all taps are updated while it is in the cache;
  positions are summed last, in float32 or better."""
  k = len(kernel)
  wide = jnp.promote_types(dy.dtype, jnp.float32)

  def add(taps, image):
    x, dy = image
    shifts = windows(x[None], k, stride, k // 2)
    return [
      tap + shift[0] * dy for tap, shift in zip(taps, shifts, strict=True)
    ], None

  taps = [jnp.zeros(dy.shape[1:], wide)] * k**2
  taps, _ = lax.scan(add, taps, (x, dy))
  dk = jnp.stack([tap.sum((0, 1)) for tap in taps])
  return dk.reshape(kernel.shape).astype(kernel.dtype)


def _sum_of_products(shifts, kernel):
  taps = kernel.reshape(-1, kernel.shape[-1])
  products = [x * tap for x, tap in zip(shifts, taps, strict=True)]
  return sum(products[1:], products[0])


def windows(x, k: int, stride: int, pad: int, fill: float = 0.0):
  """The k * k shifts of x that one kernel position each sees."""
  pads = ((0, 0), (pad, pad), (pad, pad), (0, 0))
  x = jnp.pad(x, pads, constant_values=fill)
  rows, columns = ((n - k) // stride + 1 for n in x.shape[1:3])
  return [
    x[
      :,
      i : i + (rows - 1) * stride + 1 : stride,
      j : j + (columns - 1) * stride + 1 : stride,
    ]
    for i in range(k)
    for j in range(k)
  ]


def margin(n: int, k: int, stride: int) -> tuple[int, int]:
  """Zeros before and after an axis of the output, spread out by the stride,
  which a kernel of k must slide over to give the axis of n of the input."""
  spread = (-(-n // stride) - 1) * stride + 1
  before = k - 1 - k // 2
  return before, n + k - 1 - spread - before
