"""Runs inside this process, which may be interrupted at a line they print.

A process of its own costs a run of seconds more than its training does; where
only the run's files and messages matter, a run in this process gives the same.
What it cannot show, a process that ends without any clean-up, is in the tests
that use `commands.py`.
"""

import ast
import contextlib
import signal
import sys

from configs import quickstart
from dnal_jax import train
from dnal_jax.config import parse_config


class Killed(BaseException):
  """Ends a run between two of its statements; nothing in it may catch this."""


def run(workdir, *flags, variant=''):
  """Runs configs/quickstart.py with flags as of the command line.

  Returns its result.
  """
  config = quickstart.get_config(variant)
  config.update_from_flattened_dict(
    dict(_override(flag.removeprefix('--config.')) for flag in flags)
  )
  values = config.to_dict()
  return train.run(parse_config(values), values, workdir)


def _override(flag):
  key, value = flag.split('=', 1)
  with contextlib.suppress(ValueError):  # else a string
    value = ast.literal_eval(value)
  return key, value


class _Lines:
  """A standard output that calls `action` before it writes a line."""

  def __init__(self, prefix, action):
    self._out, self._prefix, self._action = sys.stdout, prefix, action
    self.seen = False

  def write(self, text):
    if text.startswith(self._prefix) and not self.seen:
      self.seen = True
      self._action()
    return self._out.write(text)

  def flush(self):
    self._out.flush()


@contextlib.contextmanager
def at_line(prefix, action):
  """Calls `action` at the first line that begins so; there must be one."""
  lines = _Lines(prefix, action)
  with contextlib.redirect_stdout(lines):
    yield
  assert lines.seen, f'never printed {prefix!r}'


def kill():
  raise Killed


def send(number):
  """An action that sends this process a signal."""
  return lambda: signal.raise_signal(number)
