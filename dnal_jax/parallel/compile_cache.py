"""JAX's persistent cache of compiled programs, and repair of its files.

JAX writes a file of the cache in place, so a kill or a full disk leaves it cut
off. It then compiles the program at every start, with a warning each time, and
never replaces the file. Nor does it notice a file in another's place or, if it
compresses with zstd, a flipped bit: XLA may crash, or the results may be wrong.
So checksums of our own are kept.
"""

import atexit
from collections.abc import Callable
import contextlib
import glob
import os
import pathlib
import re
import time
from typing import Any
import warnings
import zlib

import jax

# JAX's warning: what failed, the program (with which the names of its files in
# the cache begin, followed by '-'), and why.
_FAILED = re.compile(
  r"Error (reading|writing) persistent compilation cache entry for '(.+?)':"
  r'(.*)'
)
# Files of a program: of JAX, and ours, with the CRC-32 of the former.
_PROGRAM, _CRC = '-cache', '-crc32'
# JAX may still be writing a file that is younger.
_SETTLED = 10  # seconds


def keep_in(folder: pathlib.Path | None) -> None:
  """Has JAX keep compiled programs in `folder`, if there is one, so that the
  next start is faster, and replaces damaged ones.

  A folder that JAX's own options set is used instead, and its files are left
  alone. In both, all damaged files are reported in one line.
  """
  chosen = jax.config.values['jax_compilation_cache_dir']
  if chosen:
    _on_failures(_Reporter(chosen))
    return
  if folder is None:
    return
  try:
    folder.mkdir(parents=True, exist_ok=True)
  except OSError as error:
    print(
      f"no cache in '{folder}' ({error.strerror}); nothing compiled is kept"
    )
    return
  jax.config.update('jax_compilation_cache_dir', str(folder))
  if 'JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS' not in os.environ:
    jax.config.update('jax_persistent_cache_min_compile_time_secs', 0.2)
  repair = _Repairer(str(folder))
  _on_failures(repair)
  check(folder, repair)
  atexit.register(record, folder)


def check(
  folder: pathlib.Path, handle: Callable[[str, str, str], None]
) -> None:
  """Calls `handle`, as for a file that JAX cannot read, for each program that
  is not as it was recorded."""
  for file in folder.glob(f'*{_CRC}'):
    key = file.name.removesuffix(_CRC)
    with contextlib.suppress(OSError):
      try:
        program = file.with_name(f'{key}{_PROGRAM}').read_bytes()
      except FileNotFoundError:  # JAX will write another one
        file.unlink()
        continue
      if file.read_bytes() != _crc(program):
        handle('reading', key, 'its checksum is another')


def record(folder: pathlib.Path, settled: float = _SETTLED) -> None:
  """Writes the checksums of programs that have none and are as old as that, in
  seconds."""
  for program in folder.glob(f'*{_PROGRAM}'):
    file = program.with_name(f'{program.name.removesuffix(_PROGRAM)}{_CRC}')
    with contextlib.suppress(OSError):
      age = time.time() - program.stat().st_mtime
      if age >= settled and not file.exists():
        part = file.with_name(f'{file.name}.{os.getpid()}')
        part.write_bytes(_crc(program.read_bytes()))
        part.replace(file)


def _crc(program: bytes) -> bytes:
  return str(zlib.crc32(program)).encode()


class _Reporter:
  """Prints the first program that could not be read, and the first that could
  not be written."""

  fix = 'compiled again at each start; delete it, or all files there'

  def __init__(self, folder: str):
    self._folder = folder
    self._reported = set()

  def __call__(self, verb: str, program: str, reason: str) -> None:
    if verb in self._reported:
      return
    self._reported.add(verb)
    if verb == 'reading':
      text = f"a compiled program in '{self._folder}' is damaged"
      print(f"{text} ('{program}': {reason}); {self.fix}")
    else:
      text = f"compiled programs cannot be kept in '{self._folder}'"
      print(f"{text} ('{program}': {reason})")


class _Repairer(_Reporter):
  """Deletes the program's files as well, so that JAX writes them again."""

  fix = 'it and any others are deleted and compiled again'

  def __call__(self, verb: str, program: str, reason: str) -> None:
    super().__call__(verb, program, reason)
    for file in pathlib.Path(self._folder).glob(f'{glob.escape(program)}-*'):
      with contextlib.suppress(OSError):
        file.unlink()


def _on_failures(handle: Callable[[str, str, str], None]) -> None:
  """Has `handle` called instead of each of JAX's warnings about the cache."""
  show = warnings.showwarning

  def show_or_handle(message: Warning | str, *where: Any, **more: Any) -> None:
    failed = _FAILED.match(str(message))
    if failed is None:
      show(message, *where, **more)
    else:
      handle(failed[1], failed[2], failed[3].strip())

  warnings.showwarning = show_or_handle
  # Whatever filters the user has set, as `handle` repairs.
  warnings.filterwarnings('always', _FAILED.pattern, UserWarning)
