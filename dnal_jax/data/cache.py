"""Arrays that took long to make, kept in the user's cache directory.

Not beside the data, because data directories are often read-only.
"""

from collections.abc import Mapping
import os
import pathlib
import zipfile

import numpy as np


def path(*parts: str) -> pathlib.Path:
  """~/.cache/dnal_jax/..., or below XDG_CACHE_HOME."""
  home = os.environ.get('XDG_CACHE_HOME') or '~/.cache'
  # Not Path.expanduser, which raises where nobody has a home.
  return pathlib.Path(os.path.expanduser(home)).joinpath('dnal_jax', *parts)


def read(file: pathlib.Path, names: set[str]) -> dict[str, np.ndarray] | None:
  """None where there is no file, or not a whole one with these arrays."""
  try:
    if file.exists():
      with np.load(file, allow_pickle=False) as arrays:
        arrays = dict(arrays)
      return arrays if set(arrays) == names else None
  except (OSError, ValueError, zipfile.BadZipFile):
    pass
  return None


def write(file: pathlib.Path, arrays: Mapping[str, np.ndarray]) -> None:
  """At once or not at all; a cache that cannot be written stops nothing."""
  part = file.with_name(f'{file.stem}.{os.getpid()}.npz')
  try:
    file.parent.mkdir(parents=True, exist_ok=True)
    np.savez(part, allow_pickle=False, **arrays)
    part.replace(file)
  except OSError as error:
    print(f"no cache in '{file.parent}' ({error.strerror}); reading anew next")
