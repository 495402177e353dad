"""Standard output and standard error that a process can lose and go on.

The program that reads a pipe may end before this one (`| head`, or `| tee` at
Ctrl-C), the disk with a log file may be full, a terminal may be closed. What is
printed then is dropped, as a run must still save and end with its exit code.

Imports the standard library only.
"""

import contextlib
import io
import logging
import os
import sys
from typing import Any


def prepare() -> None:
  """Replaces `sys.stdout` and `sys.stderr`: errors when writing are ignored,
  each line is written at once, and what the encoding lacks is escaped.

  A stream that was closed becomes one that drops everything, so that no file of
  the run gets its number.
  """
  for number, name in ((1, 'stdout'), (2, 'stderr')):
    before, encoding = getattr(sys, name), 'utf-8'
    if before is None:
      _open_null(number)
    else:
      encoding = before.encoding
      with contextlib.suppress(OSError):
        before.flush()
    after = io.TextIOWrapper(
      io.BufferedWriter(_Lossy(number, 'w', closefd=False)),
      encoding=encoding,
      errors='backslashreplace',
      line_buffering=True,
    )
    setattr(sys, name, after)


def quiet_tensorflow() -> None:
  """Has TensorFlow, if it is imported later, not log what it raises anyway."""
  if os.environ.get('TF_CPP_MIN_LOG_LEVEL', '1') == '1':  # as jax sets it
    os.environ['TF_CPP_MIN_LOG_LEVEL'] = '2'
  os.environ.setdefault('TF_ENABLE_ONEDNN_OPTS', '0')  # logs two lines


def quiet_orbax() -> None:
  """Has orbax, its event loop and tensorstore's threads not print what orbax
  raises anyway, and a run reports. To be called once absl is imported."""
  logging.getLogger('absl').addFilter(_is_not_of_orbax)
  logging.getLogger('asyncio').addFilter(_is_not_a_lost_future)
  sys.unraisablehook = _report_unraisable


def _is_not_of_orbax(record: logging.LogRecord) -> bool:
  """A run that reads the checkpoint before a damaged one reports it itself."""
  return '/orbax/' not in record.pathname


def _is_not_a_lost_future(record: logging.LogRecord) -> bool:
  """Of the arrays that cannot be read, orbax raises the first; errors of the
  others stay in futures, about which asyncio logs a screen each."""
  return not record.getMessage().startswith('Future exception was never')


def _report_unraisable(unraisable: Any) -> None:
  """Python's own hook, but silent about what orbax leaves behind: coroutines
  that read other arrays of a damaged checkpoint, and after a save has failed,
  tensorstore's threads, which find its event loop closed, hundreds of times."""
  error = unraisable.exc_value
  closed = isinstance(error, RuntimeError) and (
    str(error) == 'Event loop is closed'
  )
  code = getattr(unraisable.object, 'cr_code', None)  # of a coroutine
  if not closed and not (code and '/orbax/' in code.co_filename):
    sys.__unraisablehook__(unraisable)


class _Lossy(io.FileIO):
  """Drops what cannot be written."""

  def write(self, data: Any) -> int:
    written = None  # also where another program made the file non-blocking
    with contextlib.suppress(OSError):
      written = super().write(data)
    return len(data) if written is None else written


def _open_null(number: int) -> None:
  null = os.open(os.devnull, os.O_WRONLY)
  if null != number:
    os.dup2(null, number)
    os.close(null)
