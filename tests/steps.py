"""Stages, a network and a batch for the tests of the train step."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np

from dnal_jax import models
from dnal_jax.data.batches import Batch
from dnal_jax.training.optimizer import ParamGroup
from dnal_jax.training.schedule import LearningRate
from dnal_jax.training.stages import Stage
from dnal_jax.training.step import train_step
from dnal_jax.training.train_state import create_train_state

RATE = LearningRate(0.1)
WARMUP = Stage('warmup', 2, {'w': ParamGroup('params/.*', RATE, 0.9, 1e-4)})
SEARCH = Stage(
  'search',
  2,
  {
    'gates': ParamGroup('gates/.*', RATE),
    'head': ParamGroup('params/head/.*', RATE),
  },
  delta_end=100.0,
  penalty=1e-3,
)
FINETUNE = Stage(
  'finetune', 2, {'w': ParamGroup('params/.*', RATE)}, gate_threshold=0.9
)


def setting(name='vgg7_digits', side=8):
  """Network, batch and variables, the same in every process."""
  net = models.get(name).build(classes=10)
  rng = np.random.default_rng(0)
  images = rng.normal(size=(16, side, side, 3)).astype(np.float32)
  batch = Batch(images, rng.integers(0, 10, 16), np.ones(16, np.float32))
  variables = jax.jit(net.init)(jax.random.key(0), images[:1])
  return net, batch, variables


def start(stage, variables):
  gate_logits = jax.tree.map(jnp.zeros_like, variables['gates'])
  return create_train_state(
    stage, variables['params'], gate_logits, variables['batch_stats']
  )


def step_of(net, stage):
  """(state, batch) -> what a step in the first epoch of the stage gives."""
  return partial(
    train_step,
    hyperparams=stage.hyperparams(0),
    net=net,
    stage=stage,
    steps_per_epoch=5,
  )
