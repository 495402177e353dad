"""Channel ids stay right through everything that layers do to a feature map."""

from functools import partial
from typing import Any

from flax import linen
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dnal_jax import models, nn
from dnal_jax.models import resnet


def features(ids, seed=0, shape=(2, 3, 3), **kwargs):
  rng = np.random.default_rng(seed)
  x = jnp.asarray(rng.normal(size=(*shape, len(ids))), jnp.float32)
  return nn.Features(x, tuple(ids), **kwargs)


def dense(m, channels):
  """The map with all channels, missing ones zero: what a sum must respect."""
  full = np.zeros((*m.x.shape[:-1], channels), np.float32)
  full[..., list(m.ids)] = m.x
  return full


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


def test_flatten_gives_each_position_ids_of_its_own():
  full = features(range(4))
  part = nn.select(full, (1, 3))
  flat, flat_part = nn.flatten(full, 4), nn.flatten(part, 4)
  np.testing.assert_array_equal(flat.x[:, np.array(flat_part.ids)], flat_part.x)
  assert len(flat_part.ids) == 9 * 2


def test_subsample_shifts_ids():
  m = features((0, 2))
  got = nn.subsample(m, 2, shift=4)
  assert got.ids == (4, 6)
  np.testing.assert_array_equal(got.x, m.x[:, ::2, ::2])


def test_a_sum_is_cut_off_only_if_all_summands_are():
  reached, cut = features((0,)), features((1,), cut_off_by=('a',))
  assert nn.add(cut, reached).cut_off_by == ()
  both = nn.add(cut, features((1,), cut_off_by=('b', 'a')))
  assert both.cut_off_by == ('a', 'b')


def test_features_are_a_pytree_with_one_leaf():
  """Ids, gates and what cuts off are structure, which `jit` compares."""
  m = features((1, 4), gates=('a',), cut_off_by=('b',))
  (leaf,), tree = jax.tree.flatten(m)
  assert leaf is m.x
  got = jax.jit(lambda m: nn.act(jnp.negative, m))(m)
  assert (got.ids, got.gates, got.cut_off_by) == ((1, 4), ('a',), ('b',))
  np.testing.assert_array_equal(got.x, -m.x)
  for other in ({'ids': (1, 5)}, {'gates': ()}, {'cut_off_by': ()}):
    kwargs = {'gates': ('a',), 'cut_off_by': ('b',), 'ids': (1, 4), **other}
    assert jax.tree.structure(features(**kwargs)) != tree


class Chained(linen.Module):
  keep: nn.Keep

  @linen.compact
  def __call__(self, x):
    return nn.chain(self, a=4, b=4, c=4)


@pytest.mark.parametrize(
  'operation',
  [
    linen.relu,
    jnp.exp,
    lambda m: m.shape,
    lambda m: linen.Conv(3, (3, 3)).init(jax.random.key(0), m),
    lambda m: linen.BatchNorm(True).init(jax.random.key(0), m),
  ],
)
def test_operations_on_arrays_say_what_to_use_instead(operation):
  with pytest.raises(TypeError, match=r'feature map of dnal_jax: .*nn\.act'):
    operation(features((0, 1)))
  with pytest.raises(AttributeError, match="Features has no 'kernel'"):
    _ = features((0, 1)).kernel


def test_nothing_is_kept_before_an_emptied_layer():
  net = Chained({'b': (), 'c': (1, 2)})
  widths: Any = net.apply({}, 0)
  assert [w.ids for w in widths] == [(), (), (1, 2)]
  assert [w.gate for w in widths] == ['a', 'b', 'c']


class OneConv(linen.Module):
  outs: tuple[int, ...] = (0, 1)
  gate: str = 'gate'

  @linen.compact
  def __call__(self, m):
    return nn.ConvBn(
      nn.Width(self.outs, self.gate),
      3,
      bias=True,
      gate=nn.Gate(name='gate'),
      train=True,
      name='conv',
    )(m)


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


@pytest.mark.parametrize('gate', ['elsewhere', None])
def test_a_gate_must_be_that_of_the_width(gate):
  with pytest.raises(ValueError, match=r"layer 'conv'.*gate 'gate'") as caught:
    OneConv(gate=gate).init(jax.random.key(0), features((0,)))
  assert repr(gate) in str(caught.value)
  assert "nn.gated(self, 'gate', ...)" in str(caught.value)


@pytest.mark.parametrize('dtype', ['float32', 'bfloat16'])
def test_gate_multiplies_the_output_of_its_layer(dtype):
  m = features((0, 1, 2))
  m = nn.act(lambda x: x.astype(dtype), m)
  variables = OneConv().init(jax.random.key(0), m)
  assert variables['gates']['gate']['g'].tolist() == [1, 1]
  bn = {'scale': jnp.array([2.0, 3.0]), 'bias': jnp.array([-0.5, 1.0])}
  variables['params']['conv']['bn'] = bn

  def out(gates):
    got, _ = OneConv().apply(
      {**variables, 'gates': {'gate': {'g': gates}}}, m, mutable='batch_stats'
    )
    assert got.x.dtype == dtype
    return np.asarray(got.x, np.float32)

  g = jnp.array([0.25, 0.0])
  full, scaled = out(jnp.ones(2)), out(g)
  assert (full != 0).all()
  tolerance = 1e-6 if dtype == 'float32' else 1e-2
  np.testing.assert_allclose(scaled, full * g, rtol=tolerance)


def test_gates_take_no_pass_over_a_map():
  """They multiply BatchNorm's scale and bias: no more products of maps."""
  m = features((0, 1, 2))
  variables = OneConv().init(jax.random.key(0), m)

  def products_of_maps(gate):
    class Net(linen.Module):
      @linen.compact
      def __call__(self, m):
        g = nn.Gate(name='gate') if gate else None
        width = nn.Width((0, 1), 'gate')
        return nn.ConvBn(width, 3, bias=True, gate=g, name='conv')(m)

    jaxpr = jax.make_jaxpr(lambda v: Net().apply(v, m).x)(variables)
    lines = str(jaxpr).splitlines()
    return sum(' = mul ' in line and '[2,3,3,2]' in line for line in lines)

  assert products_of_maps(gate=True) == products_of_maps(gate=False) == 1


def test_a_rematerialised_block_is_the_same_function():
  """Logits, statistics and gradients of a ResNet that recomputes its blocks in
  the backward pass; one block has a shortcut of another shape."""
  remat: Any = linen.remat(resnet.BasicBlock)
  net = models.get('resnet8_digits').build(
    classes=3, blocks=(1, 1), features=(4, 8), stem_layer=(4, 3, 1)
  )
  with jax.enable_x64(True):
    rng = np.random.default_rng(0)
    images = jnp.asarray(rng.normal(size=(4, 4, 4, 1)))
    weights = rng.normal(size=(4, 3))
    variables = jax.tree.map(
      lambda a: jnp.asarray(0.1 + abs(rng.normal(size=a.shape))),
      dict(jax.eval_shape(net.init, jax.random.key(0), images)),
    )
    stats = variables.pop('batch_stats')

    def loss(net, trained):
      logits, updated = net.apply(
        {**trained, 'batch_stats': stats}, images, True, mutable='batch_stats'
      )
      return (logits * weights).sum(), (logits, updated)

    def results(net):
      f = jax.value_and_grad(partial(loss, net), has_aux=True)
      equations = jax.make_jaxpr(f)(variables).eqns
      recomputed = sum('policy' in e.params for e in equations)
      return recomputed, jax.jit(f)(variables)

    (kept, want), (recomputed, got) = map(
      results, (net, net.clone(block=remat))
    )
  want, got = jax.device_get((want, got))
  assert (kept, recomputed) == (0, 2)
  assert all((g != 0).any() for g in jax.tree.leaves(want[1]['gates']))
  assert jax.tree.structure(got) == jax.tree.structure(want)
  jax.tree.map(
    partial(np.testing.assert_allclose, rtol=1e-9, atol=1e-9), got, want
  )


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
