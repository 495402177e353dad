"""Messages for a disk that is full, not writable, or does not respond."""

from collections.abc import Iterator
import contextlib
import errno
import os
import pathlib
import shutil
from typing import Any

import jax

from dnal_jax import errors

SAVE_MINUTES = 20  # after which a save is given up


@contextlib.contextmanager
def explained(directory: pathlib.Path, needed: int) -> Iterator[None]:
  """Turns what orbax raises in a save for such a disk into one message;
  `needed` is the size of a checkpoint in bytes.

  Raises:
    UserError: the disk is full or not writable.
    Stopped: the save has not ended in SAVE_MINUTES.
  """
  try:
    yield
  except TimeoutError as error:
    cause: Any = error.__cause__
    if isinstance(cause, jax.errors.JaxRuntimeError):
      raise cause from None  # another process was lost
    # Orbax measures by the system clock, which may have been set. The run
    # itself is intact, so whatever restarts it should restart it.
    raise errors.Stopped(
      f"a checkpoint was not written to '{directory}' within {SAVE_MINUTES}"
      ' minutes: the disk does not respond, or the clock has jumped; the same'
      ' command goes on from the last checkpoint'
    ) from error
  except Exception as error:  # orbax and tensorstore raise several types
    if _reason_among(error, errno.ENOSPC):
      free = shutil.disk_usage(directory).free
      raise _full(directory, needed, f'{free:,} bytes free') from error
    if _reason_among(error, errno.EDQUOT):
      raise _full(directory, needed, 'no quota left') from error
    reason = _reason_among(error, errno.EROFS, errno.EACCES, errno.EPERM)
    if reason:
      raise errors.UserError(
        f"'{directory}' cannot be written any more ({reason}); allow it, and"
        ' the same command goes on from the last checkpoint'
      ) from error
    raise


def check_free(directory: pathlib.Path, needed: int) -> None:
  """Raises UserError unless the disk has so many bytes free."""
  free = shutil.disk_usage(directory).free
  if free < needed:
    raise _full(directory, needed, f'{free:,} bytes free')


def _full(directory: pathlib.Path, needed: int, left: str) -> errors.UserError:
  return errors.UserError(
    f"'{directory}' is on a disk with {left}, and a checkpoint needs"
    f' {needed:,}; make space, and the same command goes on from the last'
    ' checkpoint'
  )


def _reason_among(error: Exception, *numbers: int) -> str | None:
  """The text of the first of these system errors that a message contains."""
  reasons = map(os.strerror, numbers)
  return next((reason for reason in reasons if reason in str(error)), None)
