"""Every lowering of a convolution is the same function, forwards and back."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dnal_jax import conv


def random(*shape):
  return jnp.asarray(np.random.default_rng(0).normal(size=shape), jnp.float32)


def with_gradients(f, x, kernel, upstream):
  y, pullback = jax.vjp(f, x, kernel)
  return (y, *pullback(upstream))


@pytest.mark.parametrize('depthwise', [False, True])
@pytest.mark.parametrize('stride', [1, 2])
@pytest.mark.parametrize('k', [1, 3, 5])
@pytest.mark.parametrize(('height', 'width'), [(1, 1), (2, 3), (7, 8)])
def test_equals_xla_convolution(height, width, k, stride, depthwise):
  x = random(2, height, width, 6)
  kernel = random(k, k, *((1, 6) if depthwise else (6, 5)))
  ours = partial(conv.conv2d, stride=stride, depthwise=depthwise)
  native = partial(conv._native, stride=stride, depthwise=depthwise)
  rows, columns = -(-height // stride), -(-width // stride)
  upstream = random(2, rows, columns, kernel.shape[-1])
  got = jax.jit(partial(with_gradients, ours))(x, kernel, upstream)
  want = jax.jit(partial(with_gradients, native))(x, kernel, upstream)
  for a, b in zip(got, want, strict=True):
    np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-5)


def test_strided_padding_is_on_both_sides():
  # With SAME the 2x2 map would be padded after its end only: 2 + 3 = 5.
  x = jnp.array([1.0, 2.0, 3.0, 4.0]).reshape(1, 1, 4, 1)
  kernel = jnp.zeros((3, 3, 1, 1)).at[1].set(1.0)
  y = conv.conv2d(x, kernel, stride=2)
  assert y.ravel().tolist() == [3.0, 9.0]


@pytest.mark.parametrize(
  ('size', 'k', 'depthwise'), [(2, 3, False), (32, 1, False), (8, 3, True)]
)
def test_other_platforms_get_one_convolution(size, k, depthwise):
  x = random(1, size, size, 4)
  kernel = random(k, k, 1 if depthwise else 4, 4)
  f = jax.jit(partial(conv.conv2d, depthwise=depthwise))
  for platform in ('cuda', 'tpu'):
    lowered = f.trace(x, kernel).lower(lowering_platforms=(platform,))
    text = lowered.as_text()
    assert text.count('stablehlo.convolution') == 1, platform
    assert 'dot_general' not in text
  on_cpu = f.trace(x, kernel).lower(lowering_platforms=('cpu',)).as_text()
  assert 'stablehlo.convolution' not in on_cpu
