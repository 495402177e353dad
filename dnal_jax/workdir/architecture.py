"""architecture.json: a network, and the channels that a search has kept in it.

  schema_version  1
  network         {name, width, classes}: of the full network
  image_shape     [height, width, channels] of its images
  gates           gate path -> ids of the channels that survive, ascending; a
                  layer that only closed ones read is left out besides

The file may be a stranger's: what it says is held against this, and against
the limits (`limits.py`, `walk.MAX_PARAMS`), before anything is made
of it.
"""

import functools
import itertools
import pathlib
from typing import Any, NamedTuple

import numpy as np

from dnal_jax import errors, limits, models, nn, trees
from dnal_jax.graph import surgery, walk
from dnal_jax.workdir import json_files
from dnal_jax.workdir.json_files import short_repr

SCHEMA_VERSION = 1
_KEYS = 'schema_version', 'network', 'image_shape', 'gates'
_KEYS_OF_NETWORK = 'name', 'width', 'classes'
_NOT_OURS = 'this is not an architecture.json of ours; restore it from a copy'


class Form(NamedTuple):
  """What a network has, given images of one shape."""

  gates: dict[str, int]  # channels behind each gate that has any
  arrays: dict[str, tuple[tuple[int, ...], np.dtype]]  # variables, by path


def write(
  workdir: pathlib.Path,
  network: str,
  width: float,
  classes: int,
  image_shape: tuple[int, int, int],
  keep: nn.Keep,
) -> None:
  """architecture.json: the network and the channels that survive in it."""
  value = {
    'schema_version': SCHEMA_VERSION,
    'network': {'name': network, 'width': width, 'classes': classes},
    'image_shape': list(image_shape),
    'gates': {path: list(ids) for path, ids in keep.items()},
  }
  json_files.write_json(workdir / 'architecture.json', value)


def read(path: pathlib.Path) -> tuple[models.Network, tuple[int, int, int]]:
  """The network with the widths that the file gives, and its image shape.

  Raises:
    UserError: the file is missing, damaged, or does not fit its network.
  """
  value = json_files.read_json(path)
  try:
    _check_version(value)
    _check_object('the file', value, _KEYS)
    _check_object('network', value['network'], _KEYS_OF_NETWORK)
    net, image_shape = _network(value['network'], value['image_shape'])
    keep = _keep(value['gates'], net, image_shape)
  except errors.UserError as error:
    raise errors.UserError(f"'{path}': {error}") from error
  return surgery.with_keep(net, keep), image_shape


def read_learned(
  path: pathlib.Path, full: models.Network, image_shape: tuple[int, int, int]
) -> models.Network:
  """The network that the file gives, learned from the full one.

  Raises:
    UserError: as `read`, or it was learned from another.
  """
  learned, shape = read(path)
  if (full, image_shape) != (surgery.with_keep(learned, {}), shape):
    raise errors.UserError(
      f"'{path}' was learned from another network, width, classes or image"
      ' size than the config has'
    )
  return learned


@functools.lru_cache(maxsize=16)
def form(net: models.Network, image_shape: tuple[int, int, int]) -> Form:
  """What the network has. Found by a graph, which takes a tenth of a second and
  more, and hence remembered.

  Raises:
    UserError: it has more parameters than a network may have.
  """
  graph = walk.graph_of(net, image_shape)
  return Form(
    {gate: len(ids) for gate, ids in graph.gates.items()},
    {
      key: (array.shape, array.dtype)
      for key, array in trees.flatten(graph.shapes).items()
    },
  )


def _check_object(key: str, value: Any, keys: tuple[str, ...]) -> None:
  """It has these keys, all of them and no others."""
  if type(value) is not dict:
    raise _wrong(key, value, f'an object {{{", ".join(keys)}}}')
  for name in keys:
    if name not in value:
      raise errors.UserError(f"{key} lacks the key '{name}'; {_NOT_OURS}")
  for name in value:
    if name not in keys:
      told = short_repr(name)
      raise errors.UserError(f'{key} has the unknown key {told}; {_NOT_OURS}')


def _check_version(value: Any) -> None:
  """Before anything else, since another schema may have other keys."""
  if type(value) is not dict:
    raise _wrong('the file', value, 'an object')
  version = value.get('schema_version')
  if type(version) is not int or version != SCHEMA_VERSION:
    raise errors.UserError(
      f'it has schema_version {short_repr(version)}; this release reads'
      f' {SCHEMA_VERSION}: use the release that wrote it'
    )


def _network(
  spec: dict[str, Any], shape: Any
) -> tuple[models.Network, tuple[int, int, int]]:
  """The full network, and the shape of its images."""
  name, width = spec['name'], spec['width']
  if type(name) is not str or len(name) > limits.NAME:
    told = f'a name of at most {limits.NAME} characters'
    raise _wrong('network.name', name, told)
  if type(width) not in (int, float) or not 0 < width <= limits.WIDTH:
    raise _wrong('network.width', width, f'above 0 and {limits.WIDTH} at most')
  classes = _integer('network.classes', spec['classes'], limits.CLASSES)
  if type(shape) is not list or len(shape) != 3:
    raise _wrong('image_shape', shape, '[height, width, channels]')
  sides = [_integer('image_shape', n, limits.SIDE) for n in shape[:2]]
  channels = _integer('image_shape[2]', shape[2], limits.CHANNELS)
  net = models.get(name).build(classes=classes, width=float(width))
  if min(sides) < net.min_image:
    raise errors.UserError(
      f"image_shape is {shape}: too small for network '{name}', whose images"
      f' have {net.min_image} pixels a side or more; {_NOT_OURS}'
    )
  return net, (sides[0], sides[1], channels)


def _keep(
  gates: Any, net: models.Network, image_shape: tuple[int, int, int]
) -> dict[str, nn.Ids]:
  """The channels that the file keeps of the full network."""
  if type(gates) is not dict:
    raise _wrong('gates', gates, 'an object {path: ids}')
  for gate, ids in gates.items():
    if (
      type(ids) is not list
      or not all(type(i) is int for i in ids)
      or not all(a < b for a, b in itertools.pairwise(ids))
    ):
      raise errors.UserError(
        f'gate {short_repr(gate)} is {short_repr(ids)}; it must list integers,'
        f' each once, ascending; {_NOT_OURS}'
      )
  full = form(net, image_shape).gates
  for gate in sorted(full.keys() | gates.keys()):
    if gate not in full or gate not in gates:
      where = 'network' if gate not in full else 'file'
      raise errors.UserError(
        f'the {where} has no gate {short_repr(gate)}; {_NOT_OURS}'
      )
    ids = gates[gate]
    if ids and not 0 <= ids[0] <= ids[-1] < full[gate]:
      raise errors.UserError(
        f'gate {short_repr(gate)} keeps a channel outside 0 to'
        f' {full[gate] - 1}; {_NOT_OURS}'
      )
  return {gate: tuple(gates[gate]) for gate in gates}


def _integer(key: str, value: Any, most: int) -> int:
  if type(value) is not int or not 1 <= value <= most:
    raise _wrong(key, value, f'an integer from 1 to {most:,}')
  return value


def _wrong(key: str, value: Any, wanted: str) -> errors.UserError:
  return errors.UserError(
    f'{key} is {short_repr(value)}; it must be {wanted}; {_NOT_OURS}'
  )
