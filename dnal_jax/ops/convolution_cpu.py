"""Forms of a convolution and of its gradients that are fast on a CPU.

B batch, H height, W width, I input channels, O output channels, k kernel size;
x is [B, H, W, I], kernel [k, k, I, O], and dy the gradient of the output
[B, H', W', O]. `choose` decides by shape, from the measurements of
`benchmarks/conv_lowering.py` (docs/results).
"""

from collections.abc import Callable
from typing import NamedTuple

import jax
from jax import lax
import jax.numpy as jnp

from dnal_jax.ops import depthwise_cpu

# Maps with fewer positions than this are multiplied as matrices.
_TINY_MAP = 16
# Positions in a chunk of a matrix product (at least two images), so that the
# patches of a chunk stay in the processor's cache.
_POSITIONS = 1024
# Kernel gradients are summed over chunks of at most this many numbers, and as
# convolutions of at least this many positions; both for the cache.
_KERNEL_CHUNK = 2**17
_KERNEL_POSITIONS = 512
# Channels that XLA's loops and convolutions compute at once: fewer take as
# long. Above it, multiples of 4 take as little as half the time.
LANES = 16
# A matrix with this many columns is wide enough to be the right operand.
_WIDE = 512


class Form(NamedTuple):
  """One way to compute a convolution and its gradients."""

  forward: Callable[..., jax.Array]  # (x, kernel, stride)
  input_gradient: Callable[..., jax.Array]  # (dy, kernel, x, stride)
  kernel_gradient: Callable[..., jax.Array]  # (dy, kernel, x, stride)


def choose(x, kernel, stride: int, depthwise: bool) -> Form:
  """The form for these shapes: the only place that decides."""
  if depthwise:
    return SHIFTED
  rows, columns = (-(-n // stride) for n in x.shape[1:3])
  if len(kernel) == 1 or rows * columns < _TINY_MAP:
    return MATRIX
  if stride > 1:
    return STRIDED
  return SPLIT if kernel.shape[2] > 4 else CONVOLUTION


def native(x, kernel, stride: int, depthwise: bool = False) -> jax.Array:
  """XLA's own convolution, which GPUs and TPUs use."""
  pad = len(kernel) // 2
  return lax.conv_general_dilated(
    x,
    kernel,
    window_strides=(stride, stride),
    padding=((pad, pad), (pad, pad)),
    dimension_numbers=('NHWC', 'HWIO', 'NHWC'),
    feature_group_count=x.shape[-1] if depthwise else 1,
  )


# CONVOLUTION: XLA's convolution, with channels padded or paired. The gradients
# are convolutions, too, written in the layout that XLA prefers: inside loops it
# does not convert other layouts (100 times slower; jax 0.10).


def _forward(x, kernel, stride):
  pad = len(kernel) // 2
  return _convolution(x, kernel, [(pad, pad)] * 2, stride)


def _input_gradient(dy, kernel, x, stride):
  margins = [depthwise_cpu.margin(n, len(kernel), stride) for n in x.shape[1:3]]
  kernel = kernel[::-1, ::-1].swapaxes(2, 3)
  return _convolution(dy, kernel, margins, dilation=stride)


def _convolution(x, kernel, padding, stride=1, dilation=1):
  inputs, outputs = kernel.shape[2:]
  columns = x.shape[2] + sum(padding[1]) - len(kernel) + 1
  pairs = (
    2 * outputs <= LANES
    and inputs <= LANES
    and stride == dilation == 1
    and columns % 2 == 0
  )
  strides = stride, stride
  if pairs:  # The outputs of two neighbours side by side fill the lanes.
    strides = 1, 2
    sides = [((0, 0), side, (0, 0), (0, 0)) for side in ((0, 1), (1, 0))]
    kernel = jnp.concatenate([jnp.pad(kernel, side) for side in sides], -1)
  else:
    more = [-n % 4 if n > LANES else 0 for n in (inputs, outputs)]
    x = jnp.pad(x, [(0, 0)] * 3 + [(0, more[0])])
    kernel = jnp.pad(kernel, [(0, 0)] * 2 + [(0, n) for n in more])
  y = lax.conv_general_dilated(
    x,
    kernel,
    window_strides=strides,
    padding=padding,
    lhs_dilation=(dilation, dilation),
    dimension_numbers=('NHWC', 'HWIO', 'NHWC'),
  )
  if pairs:
    return y.reshape(*y.shape[:2], columns, outputs)
  return y[..., :outputs]


def _kernel_gradient(dy, kernel, x, stride):
  def of(x, dy):  # with channels as batch, images as channels, dy as kernel
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
    return dk.transpose(1, 2, 0, 3).astype(_wide(dy))

  positions = dy.shape[1] * dy.shape[2]
  images = _KERNEL_CHUNK // (positions * max(kernel.shape[2:]))
  images = max(min(8, images), -(-_KERNEL_POSITIONS // positions))
  images = _power_of_two(images)  # they are the channels here
  return _sum_of_chunks(of, images, x, dy).astype(kernel.dtype)


CONVOLUTION = Form(_forward, _input_gradient, _kernel_gradient)


# MATRIX: a matrix product over the k * k * I inputs of every output position.
# Operands with more than two axes would be transposed in memory first.


def _matrix(x, kernel, stride):
  def of(x):
    product = _patches(x, len(kernel), stride) @ _flat(kernel)
    rows, columns = (-(-n // stride) for n in x.shape[1:3])
    return product.reshape(len(x), rows, columns, -1)

  return _map_chunks(of, _images(x, kernel, stride), x)


def _matrix_input_gradient(dy, kernel, x, stride):
  def of(dy):
    shape = jax.ShapeDtypeStruct((len(dy), *x.shape[1:]), dy.dtype)
    scatter = jax.linear_transpose(
      lambda x: _patches(x, len(kernel), stride), shape
    )
    return scatter(_flat(dy) @ _flat(kernel).T)[0]

  return _map_chunks(of, _images(x, kernel, stride), dy)


def _matrix_kernel_gradient(dy, kernel, x, stride):
  def of(x, dy):
    patches = _patches(x, len(kernel), stride)
    return _over_positions(patches, dy).reshape(kernel.shape)

  images = _images(x, kernel, stride)
  return _sum_of_chunks(of, images, x, dy).astype(kernel.dtype)


def _images(x, kernel, stride):
  """Images in a chunk."""
  if len(kernel) == 1:
    return len(x)  # the patches are the images themselves
  rows, columns = (-(-n // stride) for n in x.shape[1:3])
  return max(2, _POSITIONS // (rows * columns))


def _patches(x, k, stride):  # [B * H' * W', k * k * I]
  return _flat(jnp.concatenate(depthwise_cpu.windows(x, k, stride, k // 2), -1))


def _flat(a):
  return a.reshape(-1, a.shape[-1])


MATRIX = Form(_matrix, _matrix_input_gradient, _matrix_kernel_gradient)


# STRIDED: the gradients as matrix products, because convolutions would multiply
# the zeros between the positions of dy.
STRIDED = Form(_forward, _matrix_input_gradient, _matrix_kernel_gradient)


# SPLIT: the kernel gradient as the product of k row shifts of x with k column
# shifts of dy, each side by side as channels: 2 * k copies of maps instead of
# k * k, and wide operands for maps of few channels.


def _split_kernel_gradient(dy, kernel, x, stride):
  del stride  # 1
  k, _, inputs, outputs = kernel.shape
  pad = k // 2

  def of(x, dy):
    rows, columns = x.shape[1:3]
    x = jnp.pad(x, ((0, 0), (pad, pad), (0, 0), (0, 0)))
    dy = jnp.pad(dy, ((0, 0), (0, 0), (pad, pad), (0, 0)))
    xs = [x[:, i : i + rows] for i in range(k)]
    dys = [dy[:, :, j : j + columns] for j in reversed(range(k))]
    return _over_positions(jnp.concatenate(xs, -1), jnp.concatenate(dys, -1))

  def of_halves(x, dy):  # for two threads, as each copy uses only one
    half = len(x) // 2
    return of(x[:half], dy[:half]) + of(x[half:], dy[half:])

  numbers = x.shape[1] * x.shape[2] * (inputs + outputs)
  images = 2 * _power_of_two(_KERNEL_CHUNK // numbers)
  dk = _sum_of_chunks(of_halves, images, x, dy)
  dk = dk.reshape(k, inputs, k, outputs).transpose(0, 2, 1, 3)
  return dk.astype(kernel.dtype)


SPLIT = Form(_forward, _input_gradient, _split_kernel_gradient)


SHIFTED = Form(
  depthwise_cpu.convolution,
  depthwise_cpu.input_gradient,
  depthwise_cpu.kernel_gradient,
)


# Helpers of several forms.


def _map_chunks(f, images, x):
  """f(x), computed in chunks of `images` images."""
  chunks, rest = _split(images, x)
  if chunks is None:
    return f(x)
  y = lax.map(f, chunks)
  y = y.reshape(-1, *y.shape[2:])
  return jnp.concatenate([y, f(rest)]) if len(rest) else y


def _sum_of_chunks(f, images, x, dy):
  """f(x, dy), a sum over images, computed in chunks of `images` images."""
  xs, x_rest = _split(images, x)
  dys, dy_rest = _split(images, dy)
  if xs is None:
    return f(x, dy)
  zero = jnp.zeros_like(jax.eval_shape(f, x_rest, dy_rest))
  total, _ = lax.scan(lambda dk, pair: (dk + f(*pair), None), zero, (xs, dys))
  return total + f(x_rest, dy_rest) if len(x_rest) else total


def _split(images, x):
  """(chunks [n, images, ...], the rest); chunks are None if n < 2."""
  n = len(x) // images
  chunks = x[: n * images].reshape(n, images, *x.shape[1:])
  return (None if n < 2 else chunks), x[n * images :]


def _over_positions(a, b):  # [..., m], [..., n] -> [m, n]
  """Products of all channels of a with all of b, summed over positions."""
  if transposes(a.shape[-1], b.shape[-1]):
    # The barrier keeps XLA from undoing the transposition.
    return lax.optimization_barrier(_over_positions(b, a)).T
  return jnp.matmul(_flat(a).T, _flat(b), preferred_element_type=_wide(a))


def transposes(m: int, n: int) -> bool:
  """Whether a product of m rows and n columns is computed transposed.

  Few columns take up to twice as long as few rows.
  """
  return 0 < n <= 0.75 * m and n < _WIDE


def _power_of_two(n):
  """The largest power of two <= n, or 1; batches divide into such chunks."""
  return 1 << max(0, n.bit_length() - 1)


def _wide(a):
  """The dtype for sums over many images: float32 or wider."""
  return jnp.promote_types(a.dtype, jnp.float32)
