"""The layers and feature maps that networks are built of."""

from dnal_jax.nn.activations import relu, relu_of_sum
from dnal_jax.nn.features import (
  KEEP_ALL,
  Features,
  Ids,
  Keep,
  Width,
  act,
  add,
  average,
  chain,
  flatten,
  gated,
  image,
  max_pool,
  scaled,
  select,
  subsample,
  ungated,
)
from dnal_jax.nn.layers import ConvBn, Dense, Gate, Head

__all__ = [
  'KEEP_ALL',
  'ConvBn',
  'Dense',
  'Features',
  'Gate',
  'Head',
  'Ids',
  'Keep',
  'Width',
  'act',
  'add',
  'average',
  'chain',
  'flatten',
  'gated',
  'image',
  'max_pool',
  'relu',
  'relu_of_sum',
  'scaled',
  'select',
  'subsample',
  'ungated',
]
