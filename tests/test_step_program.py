"""The program of a step: which operations it has, dtypes, memory."""

from functools import partial
import re

from flax import linen
import jax
from jax.extend import core
from jax.interpreters import partial_eval
import jax.numpy as jnp
import numpy as np
import pytest
from steps import SEARCH, WARMUP, setting, start, step_of

from dnal_jax import models, nn, trees
from dnal_jax.data.batches import Batch


def equations(jaxpr):
  """All equations of a jaxpr, those of the jaxprs in them included."""
  for equation in jaxpr.eqns:
    yield equation
    for inner in core.jaxprs_in_params(equation.params):
      yield from equations(inner)


def kernels_with_gradients(stage):
  """Paths of the kernels whose gradient the step computes and uses.

  A gradient is an operation whose result has the shape of the kernel; no two
  kernels of this network have the same shape.
  """
  net, batch, variables = setting(side=32)
  step = jax.make_jaxpr(step_of(net, stage))(start(stage, variables), batch)
  # JAX traces all gradients and leaves it to XLA to drop those without a use.
  used, _ = partial_eval.dce_jaxpr(step.jaxpr, [True] * len(step.jaxpr.outvars))
  shapes = {
    out.aval.shape
    for equation in equations(used)
    if equation.primitive.name in ('conv_general_dilated', 'dot_general')
    for out in equation.outvars
  }
  kernels = {
    path: leaf.shape
    for path, leaf in trees.flatten(variables['params']).items()
    if path.endswith('kernel') and leaf.ndim == 4
  }
  assert len(set(kernels.values())) == len(kernels) == 6
  return {path for path, shape in kernels.items() if shape in shapes}


def test_search_step_has_no_gradient_of_kernels():
  assert kernels_with_gradients(SEARCH) == set()
  assert len(kernels_with_gradients(WARMUP)) == 6  # one for every layer


def test_residual_sums_are_not_computed_again():
  """XLA on CPU may fuse a cheap operation into each of its consumers; in a
  chain of sums, the last fusion would then read the terms of all of them."""
  net = models.get('resnet8_digits').build(classes=10, blocks=(8, 1, 1))
  _, batch, _ = setting()
  variables = jax.jit(net.init)(jax.random.key(0), batch.image)
  step = jax.jit(step_of(net, WARMUP))
  text = step.lower(start(WARMUP, variables), batch).compile().as_text()
  operands = [
    names.count('%')
    for shape, names in re.findall(r' = (.+?) fusion\((.*?)\), kind', text)
    # The check that all gradients are finite reads them all.
    if not shape.startswith(('f32[]', 'pred[]'))
  ]
  assert len(operands) > 100
  assert max(operands) < 30


@pytest.mark.parametrize('train', [False, True])
@pytest.mark.parametrize(
  'name',
  [
    *('vgg7_digits', 'resnet8_digits', 'resnet50', 'vgg16_cifar'),
    *('mobilenet_v2_digits', 'proxyless_digits'),
  ],
)
def test_every_layer_computes_in_the_dtype_of_the_images(name, train):
  variant = models.get(name)
  net, outs = variant.build(classes=10), []
  image = jnp.zeros((2, variant.image, variant.image, 3), jnp.bfloat16)
  variables = jax.eval_shape(net.init, jax.random.key(0), image)
  with linen.intercept_methods(partial(_record_dtype, outs)):
    jax.eval_shape(
      partial(net.apply, train=train, mutable=['batch_stats']), variables, image
    )
  *inside, logits = outs
  assert set(inside) == {jnp.dtype('bfloat16')}
  assert logits == jnp.float32


def _record_dtype(outs, call, args, kwargs, context):
  out = call(*args, **kwargs)
  if isinstance(context.module, nn.ConvBn | nn.Dense):
    outs.append(out.x.dtype)
  return out


def test_parts_take_less_memory():
  net, batch, variables = setting()
  batch = Batch(*(np.repeat(a, 16, axis=0) for a in batch))
  state = start(WARMUP, variables)
  step = step_of(net, WARMUP)
  whole, parts = (
    jax.jit(partial(step, grad_accum_steps=n)).lower(state, batch).compile()
    for n in (1, 8)
  )
  sizes = [c.memory_analysis().temp_size_in_bytes for c in (whole, parts)]
  assert sizes[1] < sizes[0] / 3
