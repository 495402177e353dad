"""architecture.json: a network, the channels that a search kept in it, and how
images become its input.

  schema_version  2
  network         {name, width, classes} of the full network
  image_shape     [height, width, channels] of its images
  preprocessing   {mean, std, short_side} of the run's evaluation: a number for
                  each channel of pixels in [0, 1]; pixels of the shorter side
                  before the centre crop, null where images are padded with
                  zeros instead (`Preprocessing`)
  class_names     names of the classes, by label
  gates           gate path -> ids of the channels kept, ascending. A layer that
                  reads no kept channel is left out of the network as well

Files of schema_version 1 have no preprocessing and may lack class_names.

The file is untrusted: it is checked against this schema and against the limits
(`limits.py`, `walk.MAX_PARAMS`) before a network is built from it.
"""

from collections.abc import Sequence
import dataclasses
import functools
import itertools
import pathlib
from typing import Any, NamedTuple

import numpy as np

from dnal_jax import errors, limits, models, nn, trees
from dnal_jax.data.preprocessing import Preprocessing
from dnal_jax.graph import surgery, walk
from dnal_jax.workdir import checksums, json_files
from dnal_jax.workdir.json_files import short_repr

SCHEMA_VERSION = 2
_KEYS_OF_1 = 'schema_version', 'network', 'image_shape', 'gates'
# schema_version -> (its keys, others that it may have)
_KEYS = {
  1: (_KEYS_OF_1, ('class_names',)),
  2: ((*_KEYS_OF_1, 'class_names', 'preprocessing'), ()),
}
_KEYS_OF_NETWORK = 'name', 'width', 'classes'
_FIX = 'this is not a valid architecture.json; restore it from a copy'


class Architecture(NamedTuple):
  """What the file says."""

  net: models.Network  # with the channels that are kept
  image_shape: tuple[int, int, int]  # (height, width, channels)
  class_names: tuple[str, ...] | None  # None: not in this file of version 1
  preprocessing: Preprocessing | None  # None: the file is of version 1


class Form(NamedTuple):
  """The gates and variables of a network, for images of one shape."""

  gates: dict[str, int]  # gate path -> its number of channels, where not zero
  arrays: dict[str, tuple[tuple[int, ...], np.dtype]]  # path -> (shape, dtype)


def write(
  workdir: pathlib.Path,
  network: str,
  width: float,
  class_names: Sequence[str],
  preprocessing: Preprocessing,
  keep: nn.Keep,
) -> None:
  """Writes architecture.json; `keep` maps gate paths to ids of channels."""
  value = {
    'schema_version': SCHEMA_VERSION,
    'network': {
      'name': network,
      'width': width,
      'classes': len(class_names),
    },
    'image_shape': list(preprocessing.image_shape),
    'preprocessing': preprocessing.to_json(),
    'class_names': list(class_names),
    'gates': {path: list(ids) for path, ids in keep.items()},
  }
  json_files.write_json(workdir / 'architecture.json', value)


def read(path: pathlib.Path) -> Architecture:
  """What the file says, checked.

  Raises:
    UserError: the file is missing, damaged, or does not fit its network.
  """
  value, preprocessing = json_files.read_json(path), None
  try:
    _check_version(value)
    _check_object('the file', value, *_KEYS[value['schema_version']])
    _check_object('network', value['network'], _KEYS_OF_NETWORK)
    net, image_shape = _network(value['network'], value['image_shape'])
    class_names = _class_names(value, value['network']['classes'])
    if 'preprocessing' in value:
      preprocessing = _preprocessing(value['preprocessing'], image_shape)
    keep = _keep(value['gates'], net, image_shape)
  except errors.UserError as error:
    raise errors.UserError(f"'{path}': {error}") from error
  checksums.verify(path.parent, path.name)
  net = surgery.with_keep(net, keep)
  return Architecture(net, image_shape, class_names, preprocessing)


def read_learned(
  path: pathlib.Path, full: models.Network, image_shape: tuple[int, int, int]
) -> models.Network:
  """The network of the file, which must have been learned from `full`.

  Raises:
    UserError: as `read`, or it was learned from another network.
  """
  learned, shape, *_ = read(path)
  was, now = _facts(learned, shape), _facts(full, image_shape)
  for key, value in was.items():
    if value != now.get(key):
      raise errors.UserError(
        f"'{path}' was learned with {key} {short_repr(value)}, and the config"
        f' has {short_repr(now.get(key))}; give the config of its run, with the'
        ' same flags'
      )
  return learned


def _facts(
  net: models.Network, image_shape: tuple[int, int, int]
) -> dict[str, Any]:
  """What a network is before it is pruned."""
  module: Any = net  # Flax makes a dataclass of it
  fields = {
    field.name: getattr(net, field.name)
    for field in dataclasses.fields(module)
    if field.name not in ('keep', 'name', 'parent')
  }
  return {'network': type(net).__name__, **fields, 'images': image_shape}


@functools.lru_cache(maxsize=16)
def form(net: models.Network, image_shape: tuple[int, int, int]) -> Form:
  """The gates and variables of the network. Cached, because tracing a network
  takes 0.1 s or more.

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


def _check_object(
  key: str, value: Any, keys: tuple[str, ...], optional: tuple[str, ...] = ()
) -> None:
  """Raises UserError unless `value` is an object with exactly these keys, of
  which some are optional."""
  if type(value) is not dict:
    raise _wrong(key, value, f'an object {{{", ".join(keys)}}}')
  for name in keys:
    if name not in value:
      raise errors.UserError(f"{key} lacks the key '{name}'; {_FIX}")
  for name in value:
    if name not in (*keys, *optional):
      raise errors.UserError(
        f'{key} has the unknown key {short_repr(name)}; {_FIX}'
      )


def _check_version(value: Any) -> None:
  """Raises UserError for another schema, whose keys may be others."""
  if type(value) is not dict:
    raise _wrong('the file', value, 'an object')
  version = value.get('schema_version')
  if type(version) is not int or version not in _KEYS:
    raise errors.UserError(
      f'it has schema_version {short_repr(version)}; this release reads'
      f' {" and ".join(map(str, _KEYS))}: use the release that wrote it'
    )


def _network(
  spec: dict[str, Any], shape: Any
) -> tuple[models.Network, tuple[int, int, int]]:
  """(the full network, (height, width, channels) of its images)."""
  name, width = spec['name'], spec['width']
  if type(name) is not str or len(name) > limits.NAME:
    wanted = f'a name of at most {limits.NAME} characters'
    raise _wrong('network.name', name, wanted)
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
      f' have {net.min_image} pixels a side or more; {_FIX}'
    )
  return net, (sides[0], sides[1], channels)


def _preprocessing(
  value: Any, image_shape: tuple[int, int, int]
) -> Preprocessing:
  _check_object('preprocessing', value, Preprocessing.KEYS)
  try:
    return Preprocessing.from_json(value, image_shape)
  except ValueError as error:
    raise errors.UserError(f'preprocessing.{error}; {_FIX}') from error


def _class_names(value: dict[str, Any], classes: int) -> tuple[str, ...] | None:
  if 'class_names' not in value:
    return None
  names = value['class_names']
  if (
    type(names) is not list
    or len(names) != classes
    or not all(type(name) is str for name in names)
  ):
    raise _wrong('class_names', names, f'a list of {classes} names')
  return tuple(names)


def _keep(
  gates: Any, net: models.Network, image_shape: tuple[int, int, int]
) -> dict[str, nn.Ids]:
  """{gate path: ids of the channels kept}, checked against the full network."""
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
        f' each once, ascending; {_FIX}'
      )
  full = form(net, image_shape).gates
  for gate in sorted(full.keys() | gates.keys()):
    if gate not in full or gate not in gates:
      where = 'network' if gate not in full else 'file'
      raise errors.UserError(
        f'the {where} has no gate {short_repr(gate)}; {_FIX}'
      )
    ids = gates[gate]
    if ids and not 0 <= ids[0] <= ids[-1] < full[gate]:
      raise errors.UserError(
        f'gate {short_repr(gate)} keeps a channel outside 0 to'
        f' {full[gate] - 1}; {_FIX}'
      )
  return {gate: tuple(gates[gate]) for gate in gates}


def _integer(key: str, value: Any, most: int) -> int:
  if type(value) is not int or not 1 <= value <= most:
    raise _wrong(key, value, f'an integer from 1 to {most:,}')
  return value


def _wrong(key: str, value: Any, wanted: str) -> errors.UserError:
  return errors.UserError(
    f'{key} is {short_repr(value)}; it must be {wanted}; {_FIX}'
  )
