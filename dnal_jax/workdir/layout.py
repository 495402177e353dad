"""The files of a work folder: what they hold, and that they are whole.

  config.json        the resolved config, versions, git hash
  architecture.json  gate path -> ids of the channels that the search kept; a
                     layer that only closed ones read is left out besides
  model/             weights of the final network; with architecture.json all
                     that `load` needs
  result.json        the figures of a finished run

(`status.json` is described in `progress.py`, `lock.json` in `lock.py`.)

Nothing here can execute code: JSON and safetensors only.
"""

from collections.abc import Mapping
import importlib.metadata
import json
import pathlib
import subprocess
import sys
from typing import Any

from dnal_jax import errors
from dnal_jax.workdir import json_files

# A run that has met a broken image may go on without it, and a trace changes
# nothing.
_MAY_CHANGE = ('data.skip_broken', 'profile')
_PACKAGES = ('jax', 'jaxlib', 'flax', 'optax', 'orbax-checkpoint', 'numpy')


def check_config(workdir: pathlib.Path, config: Mapping[str, Any]) -> None:
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
  theirs = json_files.read_json(path)
  if not isinstance(theirs, dict) or type(theirs.get('config')) is not dict:
    raise errors.UserError(
      f"'{path}' is not a config.json of ours; restore it from a copy, or"
      ' choose another --workdir'
    )
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


def write_config(workdir: pathlib.Path, config: Mapping[str, Any]) -> None:
  """Makes the folder and writes config.json, once.

  Raises:
    UserError: that is not possible there.
  """
  path = workdir / 'config.json'
  if path.exists():
    return
  value = {'config': config, 'versions': _versions(), 'git': _git_hash()}
  try:
    json_files.write_json(path, value)
  except OSError as error:
    raise unwritable_error(workdir, error) from error


def unwritable_error(workdir: pathlib.Path, error: OSError) -> errors.UserError:
  """What to tell of a folder that a run cannot have."""
  return errors.UserError(
    f"--workdir '{workdir}' cannot be written ({error.strerror}); name another"
  )


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
