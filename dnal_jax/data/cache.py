"""Arrays that are slow to compute, kept in the user's cache directory.

They are not kept beside the data, because data directories are often read-only.
A file that is not as it was written is ignored, and hence computed and written
again.
"""

from collections.abc import Mapping
import contextlib
import os
import pathlib

import numpy as np

from dnal_jax import paths

# An array of each file: the file's own name, by which renaming is noticed.
_NAME = 'name'


def path(*parts: str) -> pathlib.Path | None:
  """PARTS in the cache directory; None if the user has none."""
  directory = paths.cache_dir()
  return directory and directory.joinpath(*parts)


def read(
  file: pathlib.Path | None, kinds: Mapping[str, tuple[str, str]]
) -> dict[str, np.ndarray] | None:
  """The arrays of a file; None if it is missing, damaged, was written under
  another name, or has not just the arrays of `kinds`.

  A kind is a dtype and one letter for each axis, such as ('int64', 'n2'). Axes
  with the same letter have the same length; a digit is a length.
  """
  try:
    if file is None or not file.is_file():
      return None
    with file.open('rb') as opened, np.load(opened) as arrays:
      arrays = dict(arrays)
    written_as = str(arrays.pop(_NAME))
    is_whole = written_as == file.stem and _are_of(kinds, arrays)
  except Exception:  # numpy and zipfile raise a dozen types for damaged files
    return None
  return arrays if is_whole else None


def _are_of(
  kinds: Mapping[str, tuple[str, str]], arrays: Mapping[str, np.ndarray]
) -> bool:
  lengths = {}
  for name, (dtype, axes) in kinds.items():
    array = arrays[name]
    if array.dtype.type is not np.dtype(dtype).type or array.ndim != len(axes):
      return False
    for axis, length in zip(axes, array.shape, strict=True):
      want = int(axis) if axis.isdigit() else lengths.setdefault(axis, length)
      if length != want:
        return False
  return arrays.keys() == kinds.keys()


def write(file: pathlib.Path | None, arrays: Mapping[str, np.ndarray]) -> None:
  """Writes the file, if any, atomically; if that fails, prints why and goes
  on."""
  if file is None:
    return
  part = file.with_name(f'{file.stem}.{os.getpid()}.npz')
  try:
    file.parent.mkdir(parents=True, exist_ok=True)
    with_name = {**arrays, _NAME: np.array(file.stem)}
    np.savez(part, allow_pickle=False, **with_name)
    part.replace(file)
  except OSError as error:
    with contextlib.suppress(OSError):
      part.unlink(missing_ok=True)
    print(
      f"no cache in '{file.parent}' ({error.strerror}); the next start reads"
      ' the data again'
    )
