"""Every form of a convolution is the same function with the same gradients."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dnal_jax.ops import convolution, convolution_cpu


def random(*shape):
  return jnp.asarray(np.random.default_rng(0).normal(size=shape), jnp.float32)


def with_gradients(f, x, kernel, dy):
  y, pullback = jax.vjp(f, x, kernel)
  return (y, *pullback(dy))


# (images, height, width, (input channels, output channels))
SHAPES = [
  (2, 1, 1, (6, 5)),
  (2, 2, 3, (6, 5)),
  (2, 7, 8, (6, 5)),
  (19, 8, 16, (6, 5)),
]
CHANNELS = [  # by which forms of dense convolutions differ
  (19, 8, 16, (33, 34)),
  (19, 8, 16, (64, 34)),
  (19, 8, 16, (16, 20)),
  (19, 8, 16, (17, 8)),
  (19, 8, 15, (8, 8)),
  (9, 16, 16, (64, 72)),
  (35, 16, 16, (24, 8)),
]


@pytest.mark.parametrize('stride', [1, 2])
@pytest.mark.parametrize('k', [1, 3, 5])
@pytest.mark.parametrize(
  ('images', 'height', 'width', 'channels'),
  [*SHAPES, *CHANNELS],
)
def test_equals_xla_convolution(images, height, width, channels, k, stride):
  """Two chunks and a rest are 35 images for matrix products (stride 2), 19 for
  convolutions that compute kernel gradients, 9 for SPLIT. More than 16 channels
  are padded to multiples of 4; up to 8 outputs of up to 16 inputs are computed
  in pairs if the number of columns is even."""
  x = random(images, height, width, channels[0])
  check_equals_xla(x, random(k, k, *channels), stride, depthwise=False)


@pytest.mark.parametrize('stride', [1, 2])
@pytest.mark.parametrize('k', [1, 3, 5])
@pytest.mark.parametrize(('images', 'height', 'width', 'channels'), SHAPES)
def test_equals_xla_depthwise_convolution(
  images, height, width, channels, k, stride
):
  inputs, _ = channels
  x = random(images, height, width, inputs)
  check_equals_xla(x, random(k, k, 1, inputs), stride, depthwise=True)


def check_equals_xla(x, kernel, stride, *, depthwise):
  images, height, width, _ = x.shape
  ours = partial(convolution.conv2d, stride=stride, depthwise=depthwise)
  native = partial(convolution_cpu.native, stride=stride, depthwise=depthwise)
  rows, columns = -(-height // stride), -(-width // stride)
  dy = random(images, rows, columns, kernel.shape[-1])
  got = jax.jit(partial(with_gradients, ours))(x, kernel, dy)
  want = jax.jit(partial(with_gradients, native))(x, kernel, dy)
  for a, b in zip(got, want, strict=True):
    np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize('depthwise', [False, True])
@pytest.mark.parametrize(('side', 'channels'), [(2, 4), (8, 4), (8, 34)])
def test_bfloat16_kernel_gradients_are_summed_in_float32(
  side, channels, depthwise
):
  """Over many images they are as exact as a single rounding."""
  images = 64
  x = jnp.ones((images, side, side, channels), jnp.bfloat16)
  inputs = 1 if depthwise else channels
  kernel = jnp.ones((3, 3, inputs, channels), jnp.bfloat16)
  f = partial(convolution.conv2d, depthwise=depthwise)
  got = jax.jit(jax.grad(lambda k: f(x, k).astype(jnp.float32).sum()))(kernel)
  assert got.dtype == jnp.bfloat16
  assert got[1, 1, 0, 0] == jnp.bfloat16(images * side**2)


@pytest.mark.parametrize(
  ('height', 'width', 'window', 'pad'),
  [(8, 8, 2, 0), (5, 7, 2, 0), (1, 2, 2, 1), (8, 8, 3, 1), (7, 9, 3, 1)],
)
def test_pool_equals_xla_pool_with_ties(height, width, window, pad):
  """Few different values, so that most windows have equal maxima."""
  x = jnp.round(random(3, height, width, 4))
  pads = ((0, 0), (pad, pad), (pad, pad), (0, 0))
  shape, strides = (1, window, window, 1), (1, 2, 2, 1)

  def native(x):
    return jax.lax.reduce_window(x, -jnp.inf, jax.lax.max, shape, strides, pads)

  ours = partial(convolution.max_pool, window=window, stride=2, pad=pad)
  dy = random(*native(x).shape)
  got, want = (
    jax.jit(lambda x, f=f: jax.vjp(f, x)[1](dy)[0])(x) for f in (ours, native)
  )
  np.testing.assert_allclose(got, want, rtol=1e-6)
  x = x.at[0, 0, 0, 0].set(jnp.nan)
  np.testing.assert_array_equal(jax.jit(ours)(x), jax.jit(native)(x))


def test_gradients_in_loops_keep_the_fast_layout():
  """XLA on CPU is 100 times slower in other layouts (jax 0.10)."""
  x, kernel = random(16, 8, 8, 4), random(3, 3, 4, 4)

  def loss(x, kernel, stride):
    return (convolution.conv2d(x, kernel, stride=stride) ** 2).sum()

  def steps(x, kernel):
    def body(carry, _):
      gradients = [
        jax.grad(loss, (0, 1))(*carry, stride=stride) for stride in (1, 2)
      ]
      return jax.tree.map(lambda *a: sum(a), carry, *gradients), None

    return jax.lax.scan(body, (x, kernel), length=3)[0]

  text = jax.jit(steps).lower(x, kernel).compile().as_text()
  fast = text.count('dim_labels=b01f_01io->b01f')
  assert text.count('dim_labels=') == fast > 0


@pytest.mark.parametrize('columns', [(2, None, 0), (), (None,), (1, 1, 2, 0)])
@pytest.mark.parametrize('dtype', ['float32', 'bfloat16'])
def test_selected_channels_are_exact(columns, dtype):
  x = random(2, 3, 3, 3).astype(dtype)
  got = jax.jit(partial(convolution.select_channels, columns=columns))(x)
  assert got.shape == (2, 3, 3, len(columns))
  for to, column in enumerate(columns):
    want = jnp.zeros_like(x[..., 0]) if column is None else x[..., column]
    np.testing.assert_array_equal(got[..., to], want)


@pytest.mark.parametrize('of', [16, 17, 128, 129])
def test_selection_is_the_same_for_few_channels_and_for_many(of):
  """A convolution, a matrix product, or an index, by the number of channels."""
  columns = tuple(range(of - 1, 2, -2))
  x = random(2, 3, 4, of)
  y, pullback = jax.vjp(
    jax.jit(partial(convolution.select_channels, columns=columns)), x
  )
  np.testing.assert_array_equal(y, x[..., list(columns)])
  dy = random(*y.shape)
  want = np.zeros(x.shape, 'float32')
  want[..., list(columns)] = dy
  np.testing.assert_array_equal(pullback(dy)[0], want)


def test_other_platforms_select_channels_by_index():
  f = jax.jit(lambda x: convolution.select_channels(x, (2, 0)))
  for platform, product in (('cuda', False), ('tpu', False), ('cpu', True)):
    for x in random(4, 3), random(1, 2, 2, 3):
      lowered = f.trace(x).lower(lowering_platforms=(platform,)).as_text()
      products = lowered.count('dot_general') + lowered.count('convolution')
      assert (products > 0) == product, platform


@pytest.mark.parametrize('shape', [(3, 5, 4, 6), (3, 5, 4, 16), (7, 6)])
def test_channel_sums(shape):
  x = random(*shape)
  want = np.asarray(x, 'float64').reshape(-1, shape[-1]).sum(0)
  np.testing.assert_allclose(
    jax.jit(convolution.channel_sums)(x), want, rtol=1e-5, atol=1e-5
  )


def test_other_platforms_sum_channels_in_one_reduction():
  f = jax.jit(convolution.channel_sums)
  for platform, reductions in (('cuda', 1), ('tpu', 1), ('cpu', 2)):
    lowered = f.trace(random(1, 2, 2, 3)).lower(lowering_platforms=(platform,))
    assert lowered.as_text().count('stablehlo.reduce(') == reductions, platform


def test_strided_padding_is_on_both_sides():
  # 'SAME' would pad at the end only: 1 + 2 + 3 = 6 and 7.
  x = jnp.array([1.0, 2.0, 3.0, 4.0]).reshape(1, 1, 4, 1)
  kernel = jnp.zeros((3, 3, 1, 1)).at[1].set(1.0)
  y = convolution.conv2d(x, kernel, stride=2)
  assert y.ravel().tolist() == [3.0, 9.0]


@pytest.mark.parametrize(
  ('size', 'k', 'depthwise'), [(2, 3, False), (32, 1, False), (8, 3, True)]
)
def test_other_platforms_get_one_convolution(size, k, depthwise):
  x = random(1, size, size, 4)
  kernel = random(k, k, 1 if depthwise else 4, 4)
  f = jax.jit(partial(convolution.conv2d, depthwise=depthwise))
  for platform in ('cuda', 'tpu'):
    lowered = f.trace(x, kernel).lower(lowering_platforms=(platform,))
    text = lowered.as_text()
    assert text.count('stablehlo.convolution') == 1, platform
    assert 'dot_general' not in text
  on_cpu = f.trace(x, kernel).lower(lowering_platforms=('cpu',)).as_text()
  assert 'stablehlo.convolution' not in on_cpu
