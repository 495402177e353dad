"""Channel ids survive everything that layers do to a feature map."""

from collections.abc import Callable
import dataclasses

from flax import linen
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dnal_jax import nn
from dnal_jax.ops import batch_norm


def features(ids, seed=0, shape=(2, 3, 3), **kwargs):
  rng = np.random.default_rng(seed)
  x = jnp.asarray(rng.normal(size=(*shape, len(ids))), jnp.float32)
  return nn.Features(x, tuple(ids), **kwargs)


def dense(m, channels):
  """The map with all channels, absent ones zero: what a sum must respect."""
  whole = np.zeros((*m.x.shape[:-1], channels), np.float32)
  whole[..., list(m.ids)] = m.x
  return whole


@pytest.mark.parametrize(
  ('a', 'b'),
  [((0, 3), (1, 3, 4)), ((), (2,)), ((1,), ()), ((), ()), ((0, 1), (0, 1))],
)
def test_add_is_the_sum_with_zeros(a, b):
  a, b = features(a, 1), features(b, 2)
  total = nn.add(a, b)
  assert total.ids == tuple(sorted({*a.ids, *b.ids}))
  np.testing.assert_array_equal(dense(total, 5), dense(a, 5) + dense(b, 5))


def test_select_fills_with_zeros():
  m = features((1, 4))
  got = nn.select(m, (0, 4))
  np.testing.assert_array_equal(got.x[..., 0], 0)
  np.testing.assert_array_equal(got.x[..., 1], m.x[..., 1])


def test_flatten_keeps_positions_apart():
  whole = features(range(4))
  part = nn.select(whole, (1, 3))
  flat, flat_part = nn.flatten(whole, 4), nn.flatten(part, 4)
  np.testing.assert_array_equal(flat.x[:, np.array(flat_part.ids)], flat_part.x)
  assert len(flat_part.ids) == 9 * 2


def test_subsample_shifts_ids():
  m = features((0, 2))
  got = nn.subsample(m, 2, shift=4)
  assert got.ids == (4, 6)
  np.testing.assert_array_equal(got.x, m.x[:, ::2, ::2])


def test_closed_needs_every_summand_cut_off():
  seen, cut = features((0,)), features((1,), cut_off_by=('a',))
  assert nn.add(cut, seen).closed == ()
  both = nn.add(cut, features((1,), cut_off_by=('b', 'a')))
  assert both.closed == ('a', 'b')


class Chained(linen.Module):
  keep: nn.Keep

  @linen.compact
  def __call__(self, x):
    return nn.chain(self, a=4, b=4, c=4)


def test_nothing_is_kept_in_front_of_an_emptied_layer():
  net = Chained({'b': (), 'c': (1, 2)})
  widths = net.apply({}, 0)
  assert [w.ids for w in widths] == [(), (), (1, 2)]
  assert [w.gate for w in widths] == ['a', 'b', 'c']


class OneConv(linen.Module):
  outs: tuple[int, ...] = (0, 1)
  gate: str = 'gate'

  @linen.compact
  def __call__(self, m):
    width = nn.Width(self.outs, self.gate)
    m = nn.ConvBn(width, 3, bias=True, train=True, name='conv')(m)
    return nn.Gate(name='gate')(m)


def test_layer_without_outputs_has_no_variables():
  m = features((0, 1, 2))
  out, variables = OneConv(()).init_with_output(jax.random.key(0), m)
  assert not variables
  assert out.cut_off_by == ('gate',)
  assert out.x.shape == (2, 3, 3, 0)


def test_layer_without_inputs_is_the_constant_it_was():
  empty = features((), cut_off_by=('other',))
  out, variables = OneConv().init_with_output(jax.random.key(0), empty)
  assert set(variables['params']['conv']) == {'bias', 'bn'}
  assert out.cut_off_by == ('other',)
  np.testing.assert_array_equal(out.x, 0)  # BatchNorm's bias at init


def test_gate_must_stand_behind_its_own_layer():
  with pytest.raises(ValueError, match=r'give that layer the width gated\('):
    OneConv(gate='elsewhere').init(jax.random.key(0), features((0,)))


class Gated(linen.Module):
  """A gate behind a convolution, with something of the user's between."""

  between: Callable[[nn.Features], nn.Features]

  @linen.compact
  def __call__(self, m):
    width = nn.Width((0, 1), 'gate')
    m = nn.ConvBn(width, 3, name='conv')(m)
    return nn.Gate(name='gate')(self.between(m))


@pytest.mark.parametrize('dtype', ['float32', 'bfloat16'])
@pytest.mark.parametrize(
  ('between', 'straight'),
  [(lambda m: m, True), (lambda m: nn.act(jnp.tanh, m), False)],
)
def test_gate_multiplies_whatever_it_stands_behind(
  between, straight, dtype, monkeypatch
):
  """BatchNorm's scale and bias where it may, else the map itself."""
  affine = []

  def recorded(epsilon, x, scale, bias, mean, var):
    affine.append(scale)
    return with_constants(epsilon, x, scale, bias, mean, var)

  with_constants = batch_norm._with_constants
  monkeypatch.setattr(batch_norm, '_with_constants', recorded)
  g = jnp.array([0.25, 0.0])
  m = features((0, 1, 2))
  m = dataclasses.replace(m, x=m.x.astype(dtype))
  variables = Gated(between).init(jax.random.key(0), m)
  scale = jnp.array([2.0, 3.0])
  bn = {'scale': scale, 'bias': jnp.array([-0.5, 1.0])}
  variables['params']['conv']['bn'] = bn

  def out(gates):
    affine.clear()
    gates = {'gate': {'g': gates}}
    return Gated(between).apply({**variables, 'gates': gates}, m).x

  whole, scaled = out(jnp.ones(2)), out(g)
  assert whole.dtype == scaled.dtype == dtype
  assert (whole != 0).all()
  tolerance = 1e-6 if dtype == 'float32' else 1e-2
  np.testing.assert_allclose(
    scaled.astype(np.float32), whole.astype(np.float32) * g, rtol=tolerance
  )
  assert [a.tolist() for a in affine] == [
    scale.tolist(),
    *([(scale * g).tolist()] if straight else []),
  ]


def test_scaled_widths():
  assert nn.scaled(17, 1.0) == 17
  assert [nn.scaled(64, w) for w in (0.5, 0.25, 0.01)] == [32, 16, 8]


@pytest.mark.parametrize('relu', [nn.relu, nn.relu_of_sum])
def test_relu_is_a_maximum_with_gradient_0_at_0(relu):
  x = jnp.array([-2.0, -0.0, 0.0, 3.0, jnp.nan])
  np.testing.assert_array_equal(relu(x), [0, 0, 0, 3, jnp.nan])
  gradient = jax.vmap(jax.grad(relu))(x[:4])
  assert gradient.tolist() == [0, 0, 0, 1]
  assert relu(x.astype(jnp.bfloat16)).dtype == jnp.bfloat16
