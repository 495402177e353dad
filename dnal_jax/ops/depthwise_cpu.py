"""Depthwise convolutions that are fast on a CPU, as sums of shifted maps.

A sum over the k * k taps of a kernel, each times the map shifted to it.
B batch, H height, W width, C channels, k kernel size; x is [B, H, W, C], kernel
[k, k, 1, C], and dy the gradient of the output [B, H', W', C].
`benchmarks/conv_lowering.py` compares them with XLA's own; docs/results has the
figures.
"""

import jax
from jax import lax
import jax.numpy as jnp


def convolution(x, kernel, stride: int) -> jax.Array:  # [B, H', W', C]
  shifts = windows(x, len(kernel), stride, len(kernel) // 2)
  return _sum_of_products(shifts, kernel)


def input_gradient(dy, kernel, x, stride: int) -> jax.Array:  # as x
  k = len(kernel)
  margins = [(*margin(n, k, stride), stride - 1) for n in x.shape[1:3]]
  dy = lax.pad(dy, jnp.zeros((), dy.dtype), [(0, 0, 0), *margins, (0, 0, 0)])
  return _sum_of_products(windows(dy, k, 1, pad=0), kernel[::-1, ::-1])


def kernel_gradient(dy, kernel, x, stride: int) -> jax.Array:  # as kernel
  """Updates all taps for one image after the other, which stays in the cache.

  Positions are summed last, in float32 or wider.
  """
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
  """k * k views of x [B, H', W', C], one for each position of the kernel."""
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
  """(before, after): padding for the input gradient along one axis.

  The number of zeros around the output gradient, whose values are `stride`
  apart, from which a kernel of size k produces the n values of the input.
  """
  spread = (-(-n // stride) - 1) * stride + 1
  before = k - 1 - k // 2
  return before, n + k - 1 - spread - before
