"""Arrays that are slow to compute, kept in the user's cache directory.

They are not kept beside the data, because data directories are often read-only.
"""

from collections.abc import Mapping
import os
import pathlib
import zipfile

import numpy as np

from dnal_jax import paths


def path(*parts: str) -> pathlib.Path | None:
  """PARTS in the cache directory; None if the user has none."""
  directory = paths.cache_dir()
  return directory and directory.joinpath(*parts)


def read(
  file: pathlib.Path | None, names: set[str]
) -> dict[str, np.ndarray] | None:
  """The arrays of a file; None if it is missing, damaged or has others."""
  try:
    if file is not None and file.exists():
      with np.load(file, allow_pickle=False) as arrays:
        arrays = dict(arrays)
      return arrays if set(arrays) == names else None
  except (OSError, ValueError, zipfile.BadZipFile):
    pass
  return None


def write(file: pathlib.Path | None, arrays: Mapping[str, np.ndarray]) -> None:
  """Writes the file, if any, atomically; if that fails, prints why and goes
  on."""
  if file is None:
    return
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
