"""JSON files: written whole, and read as what a stranger may have made.

A file is written beside its place and moved there, so a reader sees the old
content or the new, never half of it. What is read has a limited size and depth,
and says each thing once.
"""

import json
import os
import pathlib
import reprlib
import stat
from typing import Any

from dnal_jax import errors

# The largest that we write, 61,000 channel ids, has 0.6 MB.
MAX_BYTES = 8 * 2**20
_MOST_LEVELS = 32
# Millions of small lists take seconds; a gate, and an array, is one or two.
_MOST_LISTS = 100_000

# Values of a file in our messages: short, on one line, and safe to print.
_SHORT = reprlib.Repr()
_SHORT.maxstring = _SHORT.maxother = 60
_SHORT.maxlevel = 2


def write_json(path: pathlib.Path, value: Any, part: str = 'part') -> None:
  """Replaces the file at once; where several may do so at the same moment,
  each names a `part` of its own."""
  path.parent.mkdir(parents=True, exist_ok=True)
  beside = path.with_name(f'{path.name}.{part}')
  beside.write_text(json.dumps(value, indent=1) + '\n')
  beside.replace(path)


def read_json(path: str | os.PathLike) -> Any:
  """What the file says; numbers in it are finite, and no key is there twice.

  Raises:
    UserError: it is missing, no file, too large, or is not such JSON.
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
  """The value that UTF-8 text stands for.

  Raises:
    ValueError: it is not JSON, holds NaN or an infinity, gives a key twice, or
      has more lists and objects, or deeper ones, than any file of ours.
  """
  if text.count(b'[') + text.count(b'{') > _MOST_LISTS:
    raise ValueError(f'more than {_MOST_LISTS:,} lists and objects')
  too_deep = f'more than {_MOST_LEVELS} levels of brackets'
  try:
    value = json.loads(
      text.decode(), object_pairs_hook=_once, parse_constant=_no_number
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
  """Its bytes.

  Raises:
    UserError: it is missing, or is a folder, a pipe or the like, which could
      be read for ever.
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
  """A value of a file as messages have it."""
  return _SHORT.repr(value)


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
  found = dict(pairs)
  if len(found) < len(pairs):
    seen = set()
    for key, _ in pairs:
      if key in seen:
        raise ValueError(f'the key {short_repr(key)} is there twice')
      seen.add(key)
  return found


def _no_number(name: str) -> None:
  raise ValueError(f'{name} is not a number that JSON has')
