"""BatchNorm's running averages after a network was pruned."""

import jax
import jax.numpy as jnp
import numpy as np

from dnal_jax import models
from dnal_jax.data import Data
from dnal_jax.data.resident import ResidentSource
from dnal_jax.training.recalibrate import renewed_statistics

DIGITS = Data('digits', (0.3,), (0.4,), image=8, classes=10, validation=297)


def test_averages_of_the_first_layer_by_hand():
  """Three batches by the recurrence of the running average; nothing else has
  changed, and the closed channels' statistics move like all others."""
  source = ResidentSource.open(
    DIGITS, seed=0, batch_size=32, eval_batch_size=99
  )
  net = models.get('vgg7_digits').build(classes=10, width=0.25)
  variables = jax.jit(net.init)(jax.random.key(0), jnp.zeros((1, 8, 8, 1)))
  before = jax.device_get(variables)
  got = renewed_statistics(net, variables, source, first_step=5, batches=3)
  layer = before['params']['conv1_1']
  mean = before['batch_stats']['conv1_1']['bn']['mean']
  var = before['batch_stats']['conv1_1']['bn']['var']
  for step in (5, 6, 7):
    images = source.train_batch(source.inputs(step, 1), step).image
    x = jax.lax.conv_general_dilated(
      images, layer['kernel'], (1, 1), 'SAME',
      dimension_numbers=('NHWC', 'HWIO', 'NHWC'),
    )  # fmt: skip
    x = np.asarray(x + layer['bias']).reshape(-1, x.shape[-1])
    mean = 0.9 * mean + 0.1 * x.mean(0)
    var = 0.9 * var + 0.1 * x.var(0)
  of_layer = got['conv1_1']['bn']
  np.testing.assert_allclose(of_layer['mean'], mean, rtol=1e-4, atol=1e-5)
  np.testing.assert_allclose(of_layer['var'], var, rtol=1e-4, atol=1e-5)
  assert jax.tree.structure(got) == jax.tree.structure(before['batch_stats'])
