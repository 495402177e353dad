"""Our batch normalisation is Flax's, with its derivative and its averages."""

from functools import partial

from flax import linen
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dnal_jax.ops import batch_norm


def ours(train):
  return batch_norm.BatchNorm(epsilon=1e-3, train=train)


def flax(train, dtype):
  return linen.BatchNorm(
    use_running_average=not train, momentum=0.9, epsilon=1e-3, dtype=dtype
  )


def example(shape, dtype):
  """(variables, x, gradient of the output); moments differ by channel."""
  rng = np.random.default_rng(0)
  c = shape[-1]

  def draw(*shape):
    return jnp.asarray(rng.normal(size=shape), dtype)

  x = draw(*shape) * jnp.arange(1, c + 1) + jnp.arange(c)
  variables = {
    'params': {'scale': draw(c), 'bias': draw(c)},
    'batch_stats': {'mean': draw(c), 'var': 1 + draw(c) ** 2},
  }
  return variables, x.astype(dtype), draw(*shape)


@pytest.mark.parametrize('shape', [(4, 3, 5, 6), (16, 7)])
def test_trains_as_flax_does(shape):
  with jax.enable_x64(True):
    variables, x, dy = example(shape, np.float64)

    def run(layer):
      def f(params, x):
        y, updated = layer.apply(
          {**variables, 'params': params}, x, mutable=['batch_stats']
        )
        return y, updated['batch_stats']

      y, pullback, stats = jax.vjp(f, variables['params'], x, has_aux=True)
      return y, pullback(dy), stats

    got, want = run(ours(True)), run(flax(True, np.float64))
    assert jax.tree.structure(got) == jax.tree.structure(want)
    jax.tree.map(
      lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-10, atol=1e-12),
      got,
      want,
    )


@pytest.mark.parametrize('dtype', ['float32', 'bfloat16'])
def test_evaluates_as_flax_does(dtype):
  variables, x, _ = example((4, 3, 5, 6), jnp.float32)
  x = x.astype(dtype)
  got, want = (
    layer.apply(variables, x) for layer in (ours(False), flax(False, dtype))
  )
  assert got.dtype == want.dtype == dtype
  tolerance = 1e-5 if dtype == 'float32' else 2e-2
  np.testing.assert_allclose(
    got.astype(np.float32), want.astype(np.float32), tolerance, tolerance
  )


@pytest.mark.parametrize('train', [True, False])
def test_a_factor_gives_the_product_and_its_gradients(train):
  with jax.enable_x64(True):
    variables, x, dy = example((4, 3, 5, 6), np.float64)
    factor = jnp.linspace(-1, 1, 6).at[2].set(0)

    def run(multiplied):
      def apply(params, *args):
        y, _ = ours(train).apply(
          {**variables, 'params': params}, *args, mutable=['batch_stats']
        )
        return y

      f = partial(multiplied, apply)
      y, pullback = jax.vjp(f, variables['params'], x, factor)
      return y, pullback(dy)

    jax.tree.map(
      lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-9, atol=1e-11),
      run(lambda apply, params, x, factor: apply(params, x, factor)),
      run(lambda apply, params, x, factor: apply(params, x) * factor),
    )


def test_initialises_as_flax_does():
  x = jnp.ones((2, 3, 3, 4))
  got, want = (
    layer.init(jax.random.key(0), x)
    for layer in (ours(True), flax(True, np.float32))
  )
  assert jax.tree.structure(got) == jax.tree.structure(want)
  jax.tree.map(np.testing.assert_array_equal, got, want)


def test_bfloat16_maps_have_float32_moments_and_gradients():
  """Ten thousand bfloat16 numbers: their sums are float32."""
  x = jnp.full((100, 10, 10, 2), 3.0, jnp.bfloat16)
  variables = ours(True).init(jax.random.key(0), x)
  _, updated = ours(True).apply(variables, x, mutable=['batch_stats'])
  np.testing.assert_allclose(updated['batch_stats']['mean'], 0.3, rtol=1e-6)

  def total(params):
    y, _ = ours(True).apply(
      {**variables, 'params': params}, x, mutable=['batch_stats']
    )
    return y.astype(jnp.float32).sum()

  bias = jax.grad(total)(variables['params'])['bias']
  assert bias.dtype == jnp.float32
  np.testing.assert_array_equal(bias, 10_000)
