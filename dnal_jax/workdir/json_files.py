"""Writes JSON files atomically, and reads them as untrusted.

A file is written under another name and then renamed, so a reader sees the old
content or the new one, never a part. Files that are read must be within limits
of size and depth, and have no duplicate key.
"""

import json
import os
import pathlib
import reprlib
import stat
from typing import Any

from dnal_jax import errors

# The largest that is written, of 61,000 channel ids, has 0.6 MB.
MAX_BYTES = 8 * 2**20
_MOST_LEVELS = 32
# Millions of small lists take seconds to parse. A gate or an array has one or
# two.
_MOST_LISTS = 100_000

# Values of a file in messages: short, on one line, and safe to print.
_SHORT = reprlib.Repr()
_SHORT.maxstring = _SHORT.maxother = 60
_SHORT.maxlevel = 2


def write_json(path: pathlib.Path, value: Any, part: str = 'part') -> None:
  """Replaces the file atomically. Processes that may do so at the same moment
  each pass a `part` of their own, the suffix of the temporary file."""
  path.parent.mkdir(parents=True, exist_ok=True)
  temporary = path.with_name(f'{path.name}.{part}')
  temporary.write_bytes(encode(value))
  temporary.replace(path)


def encode(value: Any) -> bytes:
  """What `write_json` writes."""
  return (json.dumps(value, indent=1) + '\n').encode()


def read_json(path: str | os.PathLike) -> Any:
  """The value in the file; its numbers are finite, and no key occurs twice.

  Raises:
    UserError: the file is missing, not a regular file, too large, or not such
      JSON.
  """
  size = file_size(path)
  if size > MAX_BYTES:
    raise errors.UserError(
      f"'{path}' has {size:,} bytes, and such a file has {MAX_BYTES:,} at"
      ' most; restore it from a copy'
    )
  try:
    with open(path, 'rb') as file:
      return parse_json(file.read(MAX_BYTES + 1))
  except OSError as error:
    raise errors.UserError(
      f"cannot read '{path}' ({error.strerror})"
    ) from error
  except ValueError as error:
    raise errors.UserError(
      f"'{path}' is not JSON ({error}); restore it from a copy"
    ) from error


def parse_json(text: bytes) -> Any:
  """The value of UTF-8 text.

  Raises:
    ValueError: it is not JSON, contains NaN or an infinity, has a key twice, or
      has more or deeper lists and objects than the limits allow.
  """
  if text.count(b'[') + text.count(b'{') > _MOST_LISTS:
    raise ValueError(f'more than {_MOST_LISTS:,} lists and objects')
  too_deep = f'more than {_MOST_LEVELS} levels of brackets'
  try:
    value = json.loads(
      text.decode(), object_pairs_hook=_object, parse_constant=_refuse_number
    )
  except RecursionError:
    raise ValueError(too_deep) from None
  level = [[value]]
  for _ in range(_MOST_LEVELS + 1):
    level = [
      child
      for node in level
      for child in (node.values() if isinstance(node, dict) else node)
      if type(child) in (dict, list)
    ]
  if level:
    raise ValueError(too_deep)
  return value


def file_size(path: str | os.PathLike) -> int:
  """The size of a regular file in bytes.

  Raises:
    UserError: it is missing, or is a folder, a pipe or a device, which could be
      read without end.
  """
  try:
    found = os.stat(path)
  except OSError as error:
    raise errors.UserError(
      f"cannot read '{path}' ({error.strerror})"
    ) from error
  if not stat.S_ISREG(found.st_mode):
    raise errors.UserError(f"cannot read '{path}' (it is not a file)")
  return found.st_size


def short_repr(value: Any) -> str:
  """A value of a file for a message: short, on one line, safe to print."""
  return _SHORT.repr(value)


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
  found = dict(pairs)
  if len(found) < len(pairs):
    seen = set()
    for key, _ in pairs:
      if key in seen:
        raise ValueError(f'the key {short_repr(key)} is there twice')
      seen.add(key)
  return found


def _refuse_number(name: str) -> None:
  raise ValueError(f'{name} is not a number that JSON has')
