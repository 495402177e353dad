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


def config(*flags, of=quickstart, variant=''):
  """The config, as nested dicts, that a command line with `flags` has."""
  values = of.get_config(variant)
  for flag in flags:
    key, value = flag.removeprefix('--config.').split('=', 1)
    # Otherwise it is a string without quotes.
    with contextlib.suppress(SyntaxError, ValueError):
      value = ast.literal_eval(value)
    values.update_from_flattened_dict({key: value})
  return values.to_dict()


def run(workdir, *flags, of=quickstart, variant=''):
  """The result of such a run."""
  values = config(*flags, of=of, variant=variant)
  return train.run(parse_config(values), values, workdir)


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
