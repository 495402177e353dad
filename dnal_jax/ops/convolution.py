"""Convolution, max-pooling, selection and sums of channels on every platform.

B batch, H height, W width, I input channels, O output channels, k kernel.
Layouts are [B, H, W, I] for images and [k, k, I, O] for kernels.

GPUs and TPUs use XLA's own operations. On CPU those are up to 100 times slower
than the same sums written in another way, which `convolution_cpu` does. On a
mesh of CPU devices, each device computes those for its own images.
"""

from functools import partial

import jax
from jax import lax
import jax.numpy as jnp
import numpy as np

from dnal_jax.ops import convolution_cpu, depthwise_cpu
from dnal_jax.parallel import mesh


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
  """Maximum over windows. Of equal values, the first gets the gradient."""
  pads = ((0, 0), (pad, pad), (pad, pad), (0, 0))
  shape, strides = (1, window, window, 1), (1, stride, stride, 1)

  def native(x):
    return lax.reduce_window(x, -jnp.inf, lax.max, shape, strides, pads)

  def on_cpu(x):
    first, *rest = depthwise_cpu.windows(x, window, stride, pad, fill=-jnp.inf)
    for other in rest:
      # Propagates NaN, as `native` does.
      first = jnp.where((first >= other) | (first != first), first, other)
    return first

  return lax.platform_dependent(x, cpu=on_cpu, default=native)


def select_channels(
  x: jax.Array,  # [..., C] floating point, finite
  columns: tuple[int | None, ...],  # for each channel of the result, that of x
) -> jax.Array:  # [..., len(columns)]
  """Channels of x in the order of `columns`; None is a channel of zeros.

  The gradient is right only if each channel is selected at most once.
  """
  return _select(columns, x.shape[-1], x)


@partial(jax.custom_vjp, nondiff_argnums=(0, 1))
def _select(columns, c, x):
  """`select_channels`, whose derivative is a selection, too.

  The derivative of indexing would add channel by channel, which takes longer
  than the convolution before it (CPU).
  """

  def gather(x):
    padded = jnp.pad(x, [(0, 0)] * (x.ndim - 1) + [(0, 1)])
    index = [c if column is None else column for column in columns]
    return padded[..., jnp.array(index, int)]

  def product(x):  # exact: all but one summand of each sum are zero
    index = [-1 if column is None else column for column in columns]
    chosen = jnp.asarray(np.arange(c)[:, None] == index, x.dtype)
    if x.ndim == 4 and max(chosen.shape) <= convolution_cpu.LANES:
      return convolution_cpu.native(x, chosen[None, None], stride=1)
    return x @ chosen

  # XLA on CPU repeats a gather for each operation that reads it, or writes it
  # channel by channel, which takes longer than the convolution after it. A
  # product is computed once, but is slow for many channels (measured up to 64),
  # and for few channels slower than the same product as a 1x1 convolution.
  if max(c, len(columns)) <= 128:
    return lax.platform_dependent(x, cpu=product, default=gather)
  return gather(x)


def _select_backward(columns, c, _, dy):
  place = {column: i for i, column in enumerate(columns)}
  return (select_channels(dy, tuple(place.get(i) for i in range(c))),)


_select.defvjp(
  lambda columns, c, x: (_select(columns, c, x), None), _select_backward
)


def channel_sums(x: jax.Array) -> jax.Array:  # [B, ..., C] -> [C]
  """The sum of each channel over images and positions, in the dtype of x."""
  c = x.shape[-1]

  def native(x):
    return x.sum(tuple(range(x.ndim - 1)))

  def by_column(x):  # [B, H, W, C]
    return x.reshape(-1, x.shape[2] * c).sum(0).reshape(-1, c).sum(0)

  # The channels of one position would leave SIMD lanes empty; a whole row fills
  # them, but the devices of a mesh would have to exchange sums of whole rows.
  if x.ndim != 4 or c >= convolution_cpu.LANES or mesh.device_count() > 1:
    return native(x)
  return lax.platform_dependent(x, cpu=by_column, default=native)


@partial(jax.custom_vjp, nondiff_argnums=(0, 1))
def _conv2d(stride, depthwise, x, kernel):
  form = convolution_cpu.choose(x, kernel, stride, depthwise)
  return lax.platform_dependent(
    x,
    kernel,
    cpu=_on_each_device(partial(form.forward, stride=stride)),
    default=partial(convolution_cpu.native, stride=stride, depthwise=depthwise),
  )


def _conv2d_forward(stride, depthwise, x, kernel):
  return _conv2d(stride, depthwise, x, kernel), (x, kernel)


def _conv2d_backward(stride, depthwise, residuals, dy):
  x, kernel = residuals
  form = convolution_cpu.choose(x, kernel, stride, depthwise)

  def on_cpu(x, kernel, dy):
    dx = _on_each_device(partial(form.input_gradient, stride=stride))
    dk = partial(form.kernel_gradient, stride=stride)
    return dx(dy, kernel, x), _on_each_device(dk, summed=True)(dy, kernel, x)

  def native(x, kernel, dy):
    own = partial(convolution_cpu.native, stride=stride, depthwise=depthwise)
    return jax.vjp(own, x, kernel)[1](dy)

  return lax.platform_dependent(x, kernel, dy, cpu=on_cpu, default=native)


_conv2d.defvjp(_conv2d_forward, _conv2d_backward)


def _on_each_device(form, *, summed=False):
  """`form` with every device of the mesh computing its own images.

  `form` takes images, a kernel and perhaps other images; if `summed`, its
  result is a sum over images. The forms for CPUs loop over images, and XLA by
  itself would have every device loop over all of them.
  """

  def each(images, kernel, *others):
    if mesh.device_count() == 1 or len(images) % mesh.device_count():
      return form(images, kernel, *others)

    def own(images, kernel, *others):
      result = form(images, kernel, *others)
      return jax.lax.psum(result, mesh.AXIS) if summed else result

    return jax.shard_map(
      own,
      in_specs=(
        mesh.BATCH_SHARDED,
        mesh.REPLICATED,
        *(mesh.BATCH_SHARDED for _ in others),
      ),
      out_specs=mesh.REPLICATED if summed else mesh.BATCH_SHARDED,
      # The zeros that a loop of sums starts with do not vary over devices.
      check_vma=False,
    )(images, kernel, *others)

  return each
