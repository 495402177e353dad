"""Random variables of networks, and channels to keep of them."""

import re

import numpy as np

from dnal_jax import trees
from dnal_jax.graph import walk


def randomised(net, shape, rng):
  """Variables with BatchNorms that are far from the identity they start as."""
  shapes = trees.flatten(walk.graph_of(net, shape).shapes)
  flat = {}
  for path, leaf in shapes.items():
    noise = rng.normal(size=leaf.shape)
    if path.endswith('kernel'):
      fan_in = np.prod(leaf.shape[:-1])
      flat[path] = noise * np.sqrt(2 / fan_in)
    elif path.endswith(('scale', 'var')):
      flat[path] = np.exp(0.3 * noise)
    else:
      flat[path] = 0.3 * noise
  return trees.unflatten(flat)


def patterns(gates, rng):
  """{name: {gate: kept ids}}: half of the channels; almost none, but at least
  one, so that the image matters; half, and one gate without channels."""
  keeps = {
    name: {
      gate: tuple(i for i in ids if rng.random() < share) or ids[-1:]
      for gate, ids in gates.items()
    }
    for name, share in (('half', 0.5), ('almost none', 0.01))
  }
  emptied = list(gates)[len(gates) // 2]
  keeps['one gate empty'] = {**keeps['half'], emptied: ()}
  if 'block1_2/5x5_e3/out' in gates:  # a supernet
    gone = re.compile(r'block1_2/.*|block\d_1/([35]x._e3|7x7_e6)/out')
    keeps = {  # programs of so many layers compile for minutes
      'half, whole candidates and a whole block closed': {
        gate: () if gone.fullmatch(gate) else ids
        for gate, ids in keeps['half'].items()
      }
    }
  return keeps


def masks(gates, keep):
  """The collection `gates`: 1 for each kept channel, 0 for the others."""
  return trees.unflatten(
    {
      f'{gate}/g': np.isin(ids, keep[gate]).astype(np.float32)
      for gate, ids in gates.items()
    }
  )
