"""Restricts a network and its variables to some of its channels."""

from collections.abc import Mapping
from typing import Any

from flax.core import FrozenDict
import jax
import numpy as np

from dnal_jax import nn, trees
from dnal_jax.graph import walk

Variables = Mapping[str, Any]


def with_keep(net: Any, keep: nn.Keep) -> Any:
  """The same network with the channels `keep` only; {} is the full one."""
  return net.clone(keep=FrozenDict(keep))  # hashable, as jit wants it


def cut(
  variables: Variables, before: walk.Graph, after: walk.Graph
) -> dict[str, Any]:
  """Restricts the variables of one form to the channels of a smaller one.

  Guarantee: the smaller network with the result is the function of the larger
  one with every other gate at zero. Takes any of the collections; returns
  numpy arrays (slicing on the device would compile once per shape).
  """
  want = trees.flatten(
    {k: v for k, v in after.shapes.items() if k in variables}
  )
  flat = {}
  for path, value in trees.flatten(jax.device_get(dict(variables))).items():
    if path not in want:  # its layer has vanished, or reads nothing any more
      continue
    layer = path.split('/', 1)[1].rpartition('/')[0]
    owner = layer.removesuffix('/bn')
    if path.startswith('gates/'):
      value = take_channels(
        value, before.gates[layer], after.gates[layer], axis=-1
      )
    elif owner in after.sites:
      old, new = before.sites[owner], after.sites[owner]
      if (
        path.endswith('/kernel') and old.ins is not None and new.ins is not None
      ):
        value = take_channels(value, old.ins, new.ins, axis=-2)
      value = take_channels(value, old.outs, new.outs, axis=-1)
    flat[path] = value
  wrong = [k for k in want if k not in flat or flat[k].shape != want[k].shape]
  if wrong:
    raise ValueError(f'cutting gave no or wrong arrays for {wrong}')
  return trees.unflatten(flat)


def take_channels(x, have: nn.Ids, want: nn.Ids, *, axis: int):
  column = {c: i for i, c in enumerate(have)}
  return x.take(np.array([column[c] for c in want], int), axis=axis)
