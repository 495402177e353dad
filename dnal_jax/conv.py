"""How convolution and pooling are computed on each platform; what they compute
is fixed.

B batch, H height, W width, I input channels, O output channels, k kernel.
Layouts are [B, H, W, I] for images and [k, k, I, O] for kernels. GPUs and TPUs
get XLA's own operations. On CPU those are up to two orders of magnitude slower
than the same sums written otherwise, so `_on_cpu` chooses by shape; the
measurements behind it: `benchmarks/conv_lowering.py`, table in RESULTS.md.
"""

from collections.abc import Callable
from functools import partial
from typing import NamedTuple

import jax
from jax import lax
import jax.numpy as jnp

# Maps of fewer positions than this are multiplied as matrices.
_TINY_MAP = 16
# Weight gradients are summed over chunks of images, so that what a product
# reads stays in the processor's cache: of so many numbers at most, but of so
# many positions at least, because a product over few of them is slow, too.
_CHUNK = 2**17
_POSITIONS = 512


def conv2d(
  x: jax.Array,  # [B, H, W, I] floating point
  kernel: jax.Array,  # [k, k, I, O]; depthwise [k, k, 1, O] with O = I
  *,
  stride: int = 1,
  depthwise: bool = False,
) -> jax.Array:  # [B, ceil(H / stride), ceil(W / stride), O]
  """Convolution with k // 2 zeros on every side, as in PyTorch (k odd).

  Flax's `SAME` pads on one side only when the stride is 2, which is another
  function. Has a reverse-mode derivative only (`jax.grad`, `jax.vjp`).
  """
  return _conv2d(stride, depthwise, x, kernel)


def max_pool(
  x: jax.Array,  # [B, H, W, C] floating point
  window: int,
  *,
  stride: int,
  pad: int = 0,  # of minus infinity, on every side
) -> jax.Array:  # [B, (H + 2 pad - window) // stride + 1, ..., C]
  """Maximum over windows; the gradient goes to the first of equal values."""
  pads = ((0, 0), (pad, pad), (pad, pad), (0, 0))
  shape, strides = (1, window, window, 1), (1, stride, stride, 1)

  def native(x):
    return lax.reduce_window(x, -jnp.inf, lax.max, shape, strides, pads)

  def on_cpu(x):
    first, *rest = _windows(x, window, stride, pad, fill=-jnp.inf)
    for other in rest:
      # Keeps what is not a number, as `native` does.
      first = jnp.where((first >= other) | (first != first), first, other)
    return first

  return lax.platform_dependent(x, cpu=on_cpu, default=native)


class _Form(NamedTuple):
  """A convolution and its gradients, written in one way."""

  forward: Callable[..., jax.Array]  # (x, kernel, stride)
  input_gradient: Callable[..., jax.Array]  # (dy, kernel, x, stride)
  kernel_gradient: Callable[..., jax.Array]  # (dy, kernel, x, stride)


def _on_cpu(x, kernel, stride, depthwise) -> _Form:
  """The one place that decides."""
  rows, columns = (-(-n // stride) for n in x.shape[1:3])
  if depthwise:
    return _SHIFTED
  if kernel.shape[0] == 1 or rows * columns < _TINY_MAP:
    return _MATRIX
  return _CHUNKED


@partial(jax.custom_vjp, nondiff_argnums=(0, 1))
def _conv2d(stride, depthwise, x, kernel):
  return lax.platform_dependent(
    x,
    kernel,
    cpu=partial(_on_cpu(x, kernel, stride, depthwise).forward, stride=stride),
    default=partial(_native, stride=stride, depthwise=depthwise),
  )


def _conv2d_forward(stride, depthwise, x, kernel):
  return _conv2d(stride, depthwise, x, kernel), (x, kernel)


def _conv2d_backward(stride, depthwise, residuals, dy):
  x, kernel = residuals
  form = _on_cpu(x, kernel, stride, depthwise)

  def on_cpu(x, kernel, dy):
    return (
      form.input_gradient(dy, kernel, x, stride),
      form.kernel_gradient(dy, kernel, x, stride),
    )

  def native(x, kernel, dy):
    own = partial(_native, stride=stride, depthwise=depthwise)
    return jax.vjp(own, x, kernel)[1](dy)

  return lax.platform_dependent(x, kernel, dy, cpu=on_cpu, default=native)


_conv2d.defvjp(_conv2d_forward, _conv2d_backward)


def _native(x, kernel, stride, depthwise=False):
  pad = kernel.shape[0] // 2
  return lax.conv_general_dilated(
    x,
    kernel,
    window_strides=(stride, stride),
    padding=((pad, pad), (pad, pad)),
    dimension_numbers=('NHWC', 'HWIO', 'NHWC'),
    feature_group_count=x.shape[-1] if depthwise else 1,
  )


# Dense, on maps that are not tiny: XLA's convolution forwards. The gradients
# are convolutions, too, but written in its favourite layout, because inside of
# loops XLA brings no other into it (100 times slower; jax 0.10).


def _dense_input_gradient(dy, kernel, x, stride):
  k = kernel.shape[0]
  return lax.conv_general_dilated(
    dy,
    kernel[::-1, ::-1].swapaxes(2, 3),
    window_strides=(1, 1),
    padding=[_margin(n, k, stride) for n in x.shape[1:3]],
    lhs_dilation=(stride, stride),
    dimension_numbers=('NHWC', 'HWIO', 'NHWC'),
  )


def _dense_kernel_gradient(dy, kernel, x, stride):
  def of(x, dy):  # channels as batch, images as channels, dy as the kernel
    padding = []
    for n, m in zip(x.shape[1:3], dy.shape[1:3], strict=True):
      before = len(kernel) // 2
      reach = len(kernel) + (m - 1) * stride  # of all kernel positions
      padding.append((before, reach - n - before))
    dk = lax.conv_general_dilated(
      x.transpose(3, 1, 2, 0),
      dy.transpose(1, 2, 0, 3),
      window_strides=(1, 1),
      padding=padding,
      rhs_dilation=(stride, stride),
      dimension_numbers=('NHWC', 'HWIO', 'NHWC'),
    )
    return dk.transpose(1, 2, 0, 3).astype(wide)

  wide = jnp.promote_types(dy.dtype, jnp.float32)
  images, rows, columns, _ = dy.shape
  positions = rows * columns
  largest = positions * max(kernel.shape[2:])
  per_chunk = max(min(8, _CHUNK // largest), -(-_POSITIONS // positions), 1)
  chunks = images // per_chunk
  if chunks < 2:
    return of(x, dy).astype(kernel.dtype)
  whole = chunks * per_chunk
  split = [a[:whole].reshape(chunks, per_chunk, *a.shape[1:]) for a in (x, dy)]
  dk, _ = lax.scan(
    lambda dk, chunk: (dk + of(*chunk), None),
    jnp.zeros(kernel.shape, wide),
    split,
  )
  if whole < images:
    dk = dk + of(x[whole:], dy[whole:])
  return dk.astype(kernel.dtype)


_CHUNKED = _Form(_native, _dense_input_gradient, _dense_kernel_gradient)


# 1x1 kernels and tiny maps: one matrix product over the k * k * I inputs of
# every output position. Both operands have two axes, as more of them would be
# transposed in memory first.


def _matrix(x, kernel, stride):
  images, height, width, _ = x.shape
  shape = images, -(-height // stride), -(-width // stride), kernel.shape[-1]
  product = _patches(x, len(kernel), stride) @ _flat(kernel)
  return product.reshape(shape)


def _matrix_input_gradient(dy, kernel, x, stride):
  patches = partial(_patches, k=len(kernel), stride=stride)
  return jax.vjp(patches, x)[1](_flat(dy) @ _flat(kernel).T)[0]


def _matrix_kernel_gradient(dy, kernel, x, stride):
  patches = _patches(x, len(kernel), stride)
  return (patches.T @ _flat(dy)).reshape(kernel.shape)


def _patches(x, k, stride):  # [B * H * W, k * k * I]
  return _flat(jnp.concatenate(_windows(x, k, stride, k // 2), -1))


def _flat(a):
  return a.reshape(-1, a.shape[-1])


_MATRIX = _Form(_matrix, _matrix_input_gradient, _matrix_kernel_gradient)


# Depthwise: sums over the k * k taps of shifted image * weight.


def _shifted(x, kernel, stride):
  windows = _windows(x, len(kernel), stride, len(kernel) // 2)
  return _sum_of_products(windows, kernel)


def _shifted_input_gradient(dy, kernel, x, stride):
  k = len(kernel)
  margins = [(*_margin(n, k, stride), stride - 1) for n in x.shape[1:3]]
  dy = lax.pad(dy, jnp.zeros((), dy.dtype), [(0, 0, 0), *margins, (0, 0, 0)])
  return _sum_of_products(_windows(dy, k, 1, pad=0), kernel[::-1, ::-1])


def _shifted_kernel_gradient(dy, kernel, x, stride):
  """Image by image, so that all taps are updated while it is in the cache;
  positions are summed last."""
  k = len(kernel)
  wide = jnp.promote_types(dy.dtype, jnp.float32)

  def add(taps, image):
    x, dy = image
    windows = _windows(x[None], k, stride, k // 2)
    return [
      tap + window[0] * dy for tap, window in zip(taps, windows, strict=True)
    ], None

  taps = [jnp.zeros(dy.shape[1:], wide)] * k**2
  taps, _ = lax.scan(add, taps, (x, dy))
  dk = jnp.stack([tap.sum((0, 1)) for tap in taps])
  return dk.reshape(kernel.shape).astype(kernel.dtype)


def _sum_of_products(windows, kernel):
  taps = kernel.reshape(-1, kernel.shape[-1])
  products = [w * tap for w, tap in zip(windows, taps, strict=True)]
  return sum(products[1:], products[0])


_SHIFTED = _Form(_shifted, _shifted_input_gradient, _shifted_kernel_gradient)


def _windows(x, k, stride, pad, fill=0.0):
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


def _margin(n, k, stride):
  """Zeros before and after an axis of the output, spread out by the stride,
  which a kernel of k must slide over to give the axis of n of the input."""
  spread = (-(-n // stride) - 1) * stride + 1
  before = k - 1 - k // 2
  return before, n + k - 1 - spread - before
