"""Restricts a network and its variables to some of the channels."""

from collections.abc import Mapping
from typing import Any

from flax.core import FrozenDict
import jax
import numpy as np

from dnal_jax import nn, trees
from dnal_jax.graph import walk

Variables = Mapping[str, Any]  # {collection: nested dict of arrays}


def with_keep(net: Any, keep: nn.Keep) -> Any:
  """The same network with the channels `keep` only; {} is the full network."""
  return net.clone(keep=FrozenDict(keep))  # hashable, for `jit`


def prune_variables(
  variables: Variables, before: walk.Graph, after: walk.Graph
) -> dict[str, Any]:
  """Restricts the variables of a network to the channels of a smaller one.

  Guarantees that the smaller network with the result is the same function as
  the larger one with all other gates at zero. Takes any of the collections and
  returns numpy arrays: slices on the device would be compiled for each shape.

  Raises:
    ValueError: the result does not fit the smaller network.
  """
  want = trees.flatten(
    {k: v for k, v in after.shapes.items() if k in variables}
  )
  flat = {}
  for path, value in trees.flatten(jax.device_get(dict(variables))).items():
    if path not in want:  # the layer has vanished, or reads nothing any more
      continue
    owner = path.split('/', 1)[1].rpartition('/')[0]
    layer = owner.removesuffix('/bn')
    if path.startswith('gates/'):
      old, new = before.gates[owner], after.gates[owner]
      value = take_channels(value, old, new, axis=-1)
    elif layer in after.layers:
      old, new = before.layers[layer], after.layers[layer]
      if (
        path.endswith('/kernel')
        and old.in_ids is not None
        and new.in_ids is not None
      ):
        value = take_channels(value, old.in_ids, new.in_ids, axis=-2)
      value = take_channels(value, old.out_ids, new.out_ids, axis=-1)
    flat[path] = value
  wrong = [k for k in want if k not in flat or flat[k].shape != want[k].shape]
  if wrong:
    raise ValueError(f'pruning gave missing or misshapen arrays for {wrong}')
  return trees.unflatten(flat)


def take_channels(
  x: np.ndarray, have: nn.Ids, want: nn.Ids, *, axis: int
) -> np.ndarray:
  """The channels `want` of an array whose `axis` has the channels `have`."""
  column = {c: i for i, c in enumerate(have)}
  return x.take(np.array([column[c] for c in want], int), axis=axis)
