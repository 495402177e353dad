"""Arrays that are slow to compute, kept in the user's cache directory.

They are not kept beside the data, because data directories are often read-only.
"""

from collections.abc import Mapping
import os
import pathlib
import zipfile

import numpy as np


def path(*parts: str) -> pathlib.Path:
  """~/.cache/dnal_jax/PARTS; XDG_CACHE_HOME replaces ~/.cache."""
  home = os.environ.get('XDG_CACHE_HOME') or '~/.cache'
  # Path.expanduser would raise for a user without a home directory.
  return pathlib.Path(os.path.expanduser(home)).joinpath('dnal_jax', *parts)


def read(file: pathlib.Path, names: set[str]) -> dict[str, np.ndarray] | None:
  """The arrays of a file; None if it is missing, damaged or has others."""
  try:
    if file.exists():
      with np.load(file, allow_pickle=False) as arrays:
        arrays = dict(arrays)
      return arrays if set(arrays) == names else None
  except (OSError, ValueError, zipfile.BadZipFile):
    pass
  return None


def write(file: pathlib.Path, arrays: Mapping[str, np.ndarray]) -> None:
  """Writes the file atomically; if that fails, prints why and goes on."""
  part = file.with_name(f'{file.stem}.{os.getpid()}.npz')
  try:
    file.parent.mkdir(parents=True, exist_ok=True)
    np.savez(part, allow_pickle=False, **arrays)
    part.replace(file)
  except OSError as error:
    print(
      f"no cache in '{file.parent}' ({error.strerror}); the next start reads"
      ' the data again'
    )
