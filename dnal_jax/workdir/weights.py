"""The weights of a network as one file of safetensors, in a run's folder.

The file may be a stranger's: its size and its header, which tells every array's
dtype and shape, are held against what the network needs before an array is
read.
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
from dnal_jax.workdir import json_files
from dnal_jax.workdir.json_files import short_repr

FILE = 'model/variables.safetensors'
_PREFIX = 8  # bytes that hold the length of the header
_FIX = "; bring it back from a copy of the run's folder"


def write(workdir: pathlib.Path, variables: surgery.Variables) -> None:
  """All that `apply` needs beside the architecture."""
  path = workdir / FILE
  path.parent.mkdir(parents=True, exist_ok=True)
  flat = trees.flatten(variables)
  arrays = {k: np.ascontiguousarray(a) for k, a in flat.items()}
  part = path.with_name(f'{path.name}.part')
  # By Python, whose errors tell what is wrong with a disk.
  part.write_bytes(safetensors.numpy.save(arrays))
  part.replace(path)


def read(
  workdir: pathlib.Path,
  want: Mapping[str, tuple[tuple[int, ...], np.dtype]],
) -> dict[str, np.ndarray]:
  """{path: array} of exactly the shapes and dtypes wanted, all finite.

  Raises:
    UserError: the file is missing, damaged, or holds something else.
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
        f"'{path}': '{key}' holds what is not a finite number{_FIX}"
      )
  return arrays


def _check(path: pathlib.Path, size: int, want: Mapping[str, Any]) -> None:
  """Holds the file's size and header against the arrays that are wanted.

  Raises:
    UserError: they are of other arrays.
    ValueError: they are of no file of safetensors.
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
    should, told = None, header.get(key)
    if key in want:
      shape, dtype = want[key]
      should = [f'{dtype.kind.upper()}{8 * dtype.itemsize}', list(shape)]
    if isinstance(told, dict):
      told = [told.get('dtype'), told.get('shape')]
    if should != told:
      raise errors.UserError(
        f"'{path}' does not fit architecture.json: {short_repr(key)} should be"
        f' {should} and is {short_repr(told)}{_FIX}'
      )
  if size != _PREFIX + length + body:
    raise ValueError(
      f'it has {size:,} bytes and should have {_PREFIX + length + body:,}'
    )
