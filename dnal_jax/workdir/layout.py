"""The files of a run's folder, and which config the folder belongs to.

  config.json        the resolved config, versions, git hash; `resumed_with`,
                     those of each later start that had others than the one
                     before
  data.json          class names, and a digest of the data set (`data_file.py`)
  architecture.json  gate path -> ids of the channels that the search kept;
                     class names; how images are resized and normalised
  model/             weights after the last epoch; with architecture.json all
                     that `load` needs
  warmup/            the full network after the warm-up, as a folder that `load`
                     reads: architecture.json, model/, SHA256SUMS
  checkpoints/       what an interrupted run resumes from (`checkpoint.py`)
  damaged/           checkpoints that could not be read
  metrics.jsonl      a row for each epoch (`metrics_file.py`)
  tensorboard/       the same as events (`tensorboard.py`)
  profile/           traces, with config.profile
  result.json        the figures of a finished run (`result_file.py`)
  SHA256SUMS         digests of the files of a finished run (`checksums.py`)
  status.json        how far the run is (`status_file.py`)
  lock.json          the process that writes to the folder (`lock.py`)

`load` reads JSON and safetensors only, which never executes code.
"""

from collections.abc import Mapping
import importlib.metadata
import json
import pathlib
import subprocess
import sys
from typing import Any

from dnal_jax import errors
from dnal_jax.config.earlier import in_todays_keys
from dnal_jax.workdir import json_files

# A run that met a broken image may go on without it, and a profile does not
# change the run.
_MAY_CHANGE = ('data.skip_broken', 'profile')
_PACKAGES = ('jax', 'jaxlib', 'flax', 'optax', 'orbax-checkpoint', 'numpy')


def check_config(workdir: pathlib.Path, config: Mapping[str, Any]) -> None:
  """Raises UserError if the folder holds a run of another config, and names the
  keys that differ. A key that was renamed since matches by its new name."""
  path = workdir / 'config.json'
  if not path.exists():
    for other in ('checkpoints', 'architecture.json', 'result.json'):
      if (workdir / other).exists():
        raise errors.UserError(
          f"'{workdir}' has {other} but no config.json to compare with;"
          ' choose another --workdir'
        )
    return
  theirs = json_files.read_json(path)
  if not isinstance(theirs, dict) or type(theirs.get('config')) is not dict:
    raise _not_valid(path)
  config = json.loads(json.dumps(config))  # tuples become lists, as on disk
  ours, theirs = (
    _leaves(in_todays_keys(value)) for value in (config, theirs['config'])
  )
  for key in _MAY_CHANGE:
    theirs[key] = ours.get(key)
  differing = [
    f'{key} (folder: {theirs.get(key)}, now: {ours.get(key)})'
    for key in sorted(ours.keys() | theirs.keys())
    if ours.get(key) != theirs.get(key)
  ]
  if differing:
    raise errors.UserError(
      f"'{workdir}' holds a run of another config; keys that differ: "
      + '; '.join(differing)
      + '. Choose another --workdir, or go back to its config'
    )


def write_config(workdir: pathlib.Path, config: Mapping[str, Any]) -> None:
  """Creates the folder and its config.json; in one that exists, adds the
  versions of this start if the last one had others, and prints which.

  Raises:
    UserError: the folder cannot be written, or config.json is damaged.
  """
  path = workdir / 'config.json'
  start = {'versions': _versions(), 'git': _git_hash()}
  value, changes = {'config': config, **start}, []
  if path.exists():
    value = json_files.read_json(path)
    starts = _starts(path, value)
    changes = _changes(starts[-1], start)
    if not changes:
      return
    value['resumed_with'] = [*starts[1:], start]
  try:
    json_files.write_json(path, value)
  except OSError as error:
    raise unwritable_error(workdir, error) from error
  if changes:
    print(
      f"'{workdir}' goes on with other versions: {', '.join(changes)};"
      ' config.json names both'
    )


def _starts(path: pathlib.Path, value: Any) -> list[Mapping[str, Any]]:
  """{'versions': ..., 'git': ...} of the first start that a config.json names,
  and of each later one with others."""
  later = value.get('resumed_with', [])
  starts = [value, *later] if isinstance(later, list) else [later]
  for start in starts:
    if not isinstance(start, dict) or not isinstance(
      start.get('versions', {}), dict
    ):
      raise _not_valid(path)
  return starts


def _changes(before: Mapping[str, Any], now: Mapping[str, Any]) -> list[str]:
  """What differs between two starts: ["jax '0.10.1' -> '0.10.2'"]."""
  old, new = (
    {**start.get('versions', {}), 'git': start.get('git')}
    for start in (before, now)
  )
  return [
    f'{name} {json_files.short_repr(old.get(name))} -> {value!r}'
    for name, value in new.items()
    if old.get(name) != value
  ]


def _not_valid(path: pathlib.Path) -> errors.UserError:
  return errors.UserError(
    f"'{path}' is not a valid config.json; restore it from a copy, or choose"
    ' another --workdir'
  )


def unwritable_error(workdir: pathlib.Path, error: OSError) -> errors.UserError:
  """The error for a folder that a run cannot be written to."""
  return errors.UserError(
    f"--workdir '{workdir}' cannot be written ({error.strerror}); name another"
  )


def _leaves(value: Any, prefix: str = '') -> dict[str, Any]:
  """{'a': {'b': x}} -> {'a.b': x}."""
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
  """Of the git checkout that this code runs from; None outside of one."""
  command = ('git', '-C', str(pathlib.Path(__file__).parent), 'rev-parse')
  try:
    done = subprocess.run(
      (*command, 'HEAD'), capture_output=True, text=True, check=True
    )
  except (OSError, subprocess.CalledProcessError):
    return None
  return done.stdout.strip()
