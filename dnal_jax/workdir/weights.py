"""The weights of a run's final network, as one safetensors file.

The file is untrusted: its size and its header, which has the dtype and shape of
every array, are checked against what the network needs before an array is read.
"""

from collections.abc import Mapping
import math
import pathlib
from typing import Any

import numpy as np
import safetensors
import safetensors.numpy

from dnal_jax import errors, trees
from dnal_jax.graph import surgery
from dnal_jax.workdir import checksums, json_files
from dnal_jax.workdir.json_files import short_repr

FILE = 'model/variables.safetensors'
_PREFIX = 8  # bytes, which hold the length of the header
_FIX = "; bring it back from a copy of the run's folder"


def write(workdir: pathlib.Path, variables: surgery.Variables) -> None:
  """Writes the arrays that `apply` needs: params, batch_stats, gates."""
  path = workdir / FILE
  path.parent.mkdir(parents=True, exist_ok=True)
  flat = trees.flatten(variables)
  arrays = {k: np.ascontiguousarray(a) for k, a in flat.items()}
  part = path.with_name(f'{path.name}.part')
  # Not by safetensors, whose errors do not say what is wrong with a disk.
  part.write_bytes(safetensors.numpy.save(arrays))
  part.replace(path)


def read(
  workdir: pathlib.Path,
  want: Mapping[str, tuple[tuple[int, ...], np.dtype]],
) -> dict[str, np.ndarray]:
  """{path: array} of exactly the paths, shapes and dtypes in `want`; finite.

  Raises:
    UserError: the file is missing or damaged, or has other arrays.
  """
  path = workdir / FILE
  try:
    size = json_files.file_size(path)
  except errors.UserError as error:
    raise errors.UserError(
      f'{error}; a run writes it when it finishes'
    ) from error
  try:
    _check(path, size, want)
    arrays = safetensors.numpy.load_file(path)
  except (OSError, ValueError, safetensors.SafetensorError) as error:
    raise errors.UserError(f"cannot read '{path}' ({error}){_FIX}") from error
  for key, array in arrays.items():
    if not np.isfinite(array).all():
      raise errors.UserError(
        f"'{path}': '{key}' holds NaN or an infinity{_FIX}"
      )
  checksums.verify(workdir, FILE)
  return arrays


def _check(path: pathlib.Path, size: int, want: Mapping[str, Any]) -> None:
  """Checks the file's size and header against the arrays in `want`.

  Raises:
    UserError: it has other arrays.
    ValueError: it is not a safetensors file.
  """
  body = sum(
    math.prod(shape) * dtype.itemsize for shape, dtype in want.values()
  )
  if size > _PREFIX + json_files.MAX_BYTES + body:
    raise errors.UserError(
      f"'{path}' does not fit architecture.json: it has {size:,} bytes, and its"
      f' arrays should have {body:,}{_FIX}'
    )
  with path.open('rb') as file:
    length = int.from_bytes(file.read(_PREFIX), 'little')
    if not 0 < length <= min(json_files.MAX_BYTES, size - _PREFIX):
      raise ValueError(f'of {size:,} bytes, {length:,} should be its header')
    header = json_files.parse_json(file.read(length))
  if not isinstance(header, dict):
    raise ValueError('its header is not an object')
  header.pop('__metadata__', None)
  for key in sorted(want.keys() | header.keys()):
    expected, found = None, header.get(key)
    if key in want:
      shape, dtype = want[key]
      expected = [f'{dtype.kind.upper()}{8 * dtype.itemsize}', list(shape)]
    if isinstance(found, dict):
      found = [found.get('dtype'), found.get('shape')]
    if expected != found:
      raise errors.UserError(
        f"'{path}' does not fit architecture.json: {short_repr(key)} should be"
        f' {expected} and is {short_repr(found)}{_FIX}'
      )
  if size != _PREFIX + length + body:
    raise ValueError(
      f'it has {size:,} bytes and should have {_PREFIX + length + body:,}'
    )
