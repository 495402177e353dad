"""What a search comes to is told while it goes on."""

import jax
import jax.numpy as jnp
import pytest

from dnal_jax import models
from dnal_jax.training import prune
from dnal_jax.training.optimizer import ParamGroup
from dnal_jax.training.schedule import LearningRate
from dnal_jax.training.stages import Stage

RATE = LearningRate(0.1)
WARMUP = Stage('warmup', 2, {'w': ParamGroup('params/.*', RATE)})
SEARCH = Stage(
  'search', 4, {'g': ParamGroup('gates/.*', RATE)}, delta_end=1e4, penalty=0.1
)
FINETUNE = Stage(
  'finetune',
  2,
  {'w': ParamGroup('params/.*', RATE)},
  gate_threshold=0.9,
  channel_multiple=8,
)


@pytest.fixture(scope='module')
def network():
  return prune.PrunableModel(
    models.get('vgg7_digits').build(classes=10), (8, 8, 1)
  )


def gate_logits(network, value):
  return jax.tree.map(lambda a: jnp.asarray(a) + value, network.zeros())


def test_the_next_cut():
  stages = (WARMUP, SEARCH, WARMUP, FINETUNE, SEARCH)
  cuts = [prune.next_cut(stages, here) for here in range(5)]
  assert cuts == [
    None,  # nothing is searched yet
    prune.Cut(SEARCH, 0.9, 8, 2),
    prune.Cut(SEARCH, 0.9, 8, 1),
    None,
    None,
  ]


def test_outlook(network):
  cut = prune.Cut(SEARCH, 0.9, 1, 1)
  nothing = prune.pruning_warning(network, gate_logits(network, 1.0), cut)
  assert 'no channel would be cut' in nothing
  assert '0.1, may be too small' in nothing
  everything = prune.pruning_warning(network, gate_logits(network, -1.0), cut)
  assert 'every channel would be cut of gate1_1' in everything
  assert '0.1, may be too large' in everything
  one_layer = gate_logits(network, 1.0)
  one_layer['gate2_1'] = jax.tree.map(jnp.negative, one_layer['gate2_1'])
  told = prune.pruning_warning(network, one_layer, cut)
  assert 'cut of gate2_1,' in told
  some = gate_logits(network, 1.0)
  some['gate2_1'] = jax.tree.map(lambda a: a.at[0].set(-1.0), some['gate2_1'])
  assert prune.pruning_warning(network, some, cut) == ''
