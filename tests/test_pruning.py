"""What a search comes to is told while it goes on."""

import jax
import jax.numpy as jnp
import pytest

from dnal_jax import models, pruning
from dnal_jax.stages import Group, LearningRate, Stage

RATE = LearningRate(0.1)
WARMUP = Stage('warmup', 2, {'w': Group('params/.*', RATE)})
SEARCH = Stage(
  'search', 4, {'g': Group('gates/.*', RATE)}, delta_end=1e4, penalty=0.1
)
FINETUNE = Stage(
  'finetune',
  2,
  {'w': Group('params/.*', RATE)},
  prune_below=0.9,
  prune_multiple=8,
)


@pytest.fixture(scope='module')
def network():
  return pruning.Subnet(models.get('vgg7_digits').build(classes=10), (8, 8, 1))


def logits(network, value):
  return jax.tree.map(lambda a: jnp.asarray(a) + value, network.zeros())


def test_the_next_cut():
  stages = (WARMUP, SEARCH, WARMUP, FINETUNE, SEARCH)
  cuts = [pruning.next_cut(stages, here) for here in range(5)]
  assert cuts == [
    None,  # nothing is searched yet
    pruning.Cut(SEARCH, 0.9, 8, 2),
    pruning.Cut(SEARCH, 0.9, 8, 1),
    None,
    None,
  ]


def test_outlook(network):
  cut = pruning.Cut(SEARCH, 0.9, 1, 1)
  nothing = pruning.outlook(network, logits(network, 1.0), cut)
  assert 'no channel would be cut' in nothing
  assert '0.1, may be too small' in nothing
  everything = pruning.outlook(network, logits(network, -1.0), cut)
  assert 'every channel would be cut of gate1_1' in everything
  assert '0.1, may be too large' in everything
  one_layer = logits(network, 1.0)
  one_layer['gate2_1'] = jax.tree.map(jnp.negative, one_layer['gate2_1'])
  told = pruning.outlook(network, one_layer, cut)
  assert 'cut of gate2_1,' in told
  some = logits(network, 1.0)
  some['gate2_1'] = jax.tree.map(lambda a: a.at[0].set(-1.0), some['gate2_1'])
  assert pruning.outlook(network, some, cut) == ''
