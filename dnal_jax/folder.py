"""The files of a work folder: what they hold, and that they are whole.

  config.json        the resolved config, versions, git hash
  architecture.json  gate path -> ids of the channels that the search kept; a
                     layer that only closed ones read is left out besides
  model/             weights of the final network; with architecture.json all
                     that `load` needs
  result.json        the figures of a finished run

(`status.json` is described in `progress.py`, `lock.json` in `lock.py`.)

Every file is written beside its place and moved there, so a reader sees the
old content or the new, never half of it. Nothing here can execute code: JSON
and safetensors only.
"""

from collections.abc import Mapping
import importlib.metadata
import json
import os
import pathlib
import subprocess
import sys
from typing import Any

import jax
import numpy as np
import safetensors
import safetensors.numpy

from dnal_jax import compact, errors, layers, models, trees

SCHEMA_VERSION = 1
_WEIGHTS = 'model/variables.safetensors'
# A run that has met a broken image may go on without it, and a trace changes
# nothing.
_MAY_CHANGE = ('data.skip_broken', 'profile')
_PACKAGES = ('jax', 'jaxlib', 'flax', 'optax', 'orbax-checkpoint', 'numpy')


def write_json(path: pathlib.Path, value: Any, part: str = 'part') -> None:
  """Replaces the file at once; where several may do so at the same moment,
  each names a `part` of its own."""
  path.parent.mkdir(parents=True, exist_ok=True)
  beside = path.with_name(f'{path.name}.{part}')
  beside.write_text(json.dumps(value, indent=1) + '\n')
  beside.replace(path)


def read_json(path: str | os.PathLike) -> Any:
  """Raises UserError if the file is missing or is not JSON."""
  try:
    return json.loads(pathlib.Path(path).read_text())
  except OSError as error:
    raise errors.UserError(
      f"cannot read '{path}' ({error.strerror})"
    ) from error
  except ValueError as error:
    raise errors.UserError(
      f"'{path}' is not JSON ({error}); restore it from a copy"
    ) from error


def check(workdir: pathlib.Path, config: Mapping[str, Any]) -> None:
  """A folder that has a config.json has it of this config.

  Raises:
    UserError: it belongs to another; names the keys that differ.
  """
  path = workdir / 'config.json'
  if not path.exists():
    for other in ('checkpoints', 'architecture.json', 'result.json'):
      if (workdir / other).exists():
        raise errors.UserError(
          f"'{workdir}' has {other} but no config.json to tell whose it is;"
          ' choose another --workdir'
        )
    return
  theirs = read_json(path)
  if not isinstance(theirs, dict) or 'config' not in theirs:
    raise errors.UserError(f"'{path}' is not a config.json of ours")
  config = json.loads(json.dumps(config))  # tuples become lists, as on disk
  ours, theirs = _leaves(config), _leaves(theirs['config'])
  for key in _MAY_CHANGE:
    theirs[key] = ours.get(key)
  differing = [
    f'{key} (folder: {theirs.get(key)}, now: {ours.get(key)})'
    for key in sorted(ours.keys() | theirs.keys())
    if ours.get(key) != theirs.get(key)
  ]
  if differing:
    raise errors.UserError(
      f"'{workdir}' was made by another config; differing: "
      + '; '.join(differing)
      + '. Choose another --workdir, or go back to its config'
    )


def claim(workdir: pathlib.Path, config: Mapping[str, Any]) -> None:
  """Makes the folder and writes config.json, once.

  Raises:
    UserError: that is not possible there.
  """
  path = workdir / 'config.json'
  if path.exists():
    return
  value = {'config': config, 'versions': _versions(), 'git': _git_hash()}
  try:
    write_json(path, value)
  except OSError as error:
    raise unwritable(workdir, error) from error


def unwritable(workdir: pathlib.Path, error: OSError) -> errors.UserError:
  """What to tell of a folder that a run cannot have."""
  return errors.UserError(
    f"--workdir '{workdir}' cannot be written ({error.strerror}); name another"
  )


def write_architecture(
  workdir: pathlib.Path,
  network: str,
  width: float,
  classes: int,
  image_shape: tuple[int, int, int],
  keep: layers.Keep,
) -> None:
  """architecture.json: the network and the channels that survive in it."""
  value = {
    'schema_version': SCHEMA_VERSION,
    'network': {'name': network, 'width': width, 'classes': classes},
    'image_shape': list(image_shape),
    'gates': {path: list(ids) for path, ids in keep.items()},
  }
  write_json(workdir / 'architecture.json', value)


def read_architecture(
  path: pathlib.Path,
) -> tuple[models.Network, tuple[int, int, int]]:
  """The network with the widths that the file gives, and its image shape.

  Raises:
    UserError: the file is missing, damaged, or does not fit its network.
  """
  value = read_json(path)
  try:
    if value['schema_version'] != SCHEMA_VERSION:
      raise errors.UserError(
        f"'{path}' has schema_version {value['schema_version']}; this release"
        f' reads {SCHEMA_VERSION}'
      )
    spec, gates = value['network'], value['gates']
    height, width, channels = (int(n) for n in value['image_shape'])
    variant = models.get(spec['name'])
    net = variant.build(
      classes=int(spec['classes']), width=float(spec['width'])
    )
    keep = {gate: tuple(ids) for gate, ids in gates.items()}
  except (KeyError, TypeError, ValueError, AttributeError) as error:
    raise errors.UserError(
      f"'{path}' is not an architecture.json of ours ({error!r})"
    ) from error
  image_shape = (height, width, channels)
  full = compact.walk(net, image_shape).gates
  for gate in sorted(full.keys() | keep.keys()):
    if gate not in full or gate not in keep:
      where = 'network' if gate not in full else 'file'
      raise errors.UserError(f"'{path}': the {where} has no gate '{gate}'")
    ids = keep[gate]
    if not all(type(i) is int for i in ids) or list(ids) != sorted(set(ids)):
      raise errors.UserError(
        f"'{path}': gate '{gate}' must list integers, each once, ascending"
      )
    if ids and not 0 <= ids[0] <= ids[-1] < len(full[gate]):
      raise errors.UserError(
        f"'{path}': gate '{gate}' keeps a channel outside 0 to"
        f' {len(full[gate]) - 1}'
      )
  return compact.with_keep(net, keep), image_shape


def read_learned(
  path: pathlib.Path, full: models.Network, image_shape: tuple[int, int, int]
) -> models.Network:
  """The network that the file gives, learned from the full one.

  Raises:
    UserError: as `read_architecture`, or it was learned from another.
  """
  learned, shape = read_architecture(path)
  if (full, image_shape) != (compact.with_keep(learned, {}), shape):
    raise errors.UserError(
      f"'{path}' was learned from another network, width, classes or image"
      ' size than the config has'
    )
  return learned


def write_model(workdir: pathlib.Path, variables: compact.Variables) -> None:
  """model/: all that `apply` needs beside the architecture, as safetensors."""
  path = workdir / _WEIGHTS
  path.parent.mkdir(parents=True, exist_ok=True)
  flat = trees.flatten(variables)
  arrays = {k: np.ascontiguousarray(a) for k, a in flat.items()}
  part = path.with_name(f'{path.name}.part')
  safetensors.numpy.save_file(arrays, part)
  part.replace(path)


def load(workdir: str | os.PathLike) -> tuple[models.Network, dict[str, Any]]:
  """(net, variables) of a finished run; needs no training code.

  `net.apply(variables, images)` gives logits [B, classes] float32 for images
  [B, H, W, C] float32, normalised with the config's data.mean and data.std.

  Raises:
    UserError: a file is missing, damaged, or does not fit the others.
  """
  workdir = pathlib.Path(workdir)
  if not workdir.is_dir():
    raise errors.UserError(f"'{workdir}' is not a directory")
  net, image_shape = read_architecture(workdir / 'architecture.json')
  path = workdir / _WEIGHTS
  try:
    arrays = safetensors.numpy.load_file(path)
  except (OSError, safetensors.SafetensorError) as error:
    raise errors.UserError(
      f"cannot read '{path}' ({error}); a run writes it when it finishes"
    ) from error
  shapes = compact.walk(net, image_shape).shapes
  want = {k: (a.shape, a.dtype) for k, a in trees.flatten(shapes).items()}
  have = {k: (a.shape, a.dtype) for k, a in arrays.items()}
  for key in sorted(want.keys() | have.keys()):
    if want.get(key) != have.get(key):
      raise errors.UserError(
        f"'{path}' does not fit architecture.json: '{key}' should be"
        f' {want.get(key)} and is {have.get(key)}'
      )
  return net, trees.unflatten(jax.tree.map(jax.numpy.asarray, arrays))


def _leaves(value: Any, prefix: str = '') -> dict[str, Any]:
  if not isinstance(value, dict):
    return {prefix: value}
  return {
    key: leaf
    for name, child in value.items()
    for key, leaf in _leaves(
      child, f'{prefix}.{name}' if prefix else name
    ).items()
  }


def _versions() -> dict[str, str]:
  versions = {name: importlib.metadata.version(name) for name in _PACKAGES}
  return {'python': sys.version.split()[0], **versions}


def _git_hash() -> str | None:
  """Of the source tree this code runs from; None outside of one."""
  command = ('git', '-C', str(pathlib.Path(__file__).parent), 'rev-parse')
  try:
    done = subprocess.run(
      (*command, 'HEAD'), capture_output=True, text=True, check=True
    )
  except (OSError, subprocess.CalledProcessError):
    return None
  return done.stdout.strip()
