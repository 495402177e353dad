"""Runs as processes that get signals at lines that they print."""

import os
import signal
import subprocess

from commands import (
  ROOT,
  command,
  ignoring,
)


def start_and_signal_at(workdir, line, *signals, flags=(), hang_up=False):
  """Runs until `line` is printed, then signals the whole process group.

  With `hang_up`, nothing that the process prints can be written from then on.
  It must end within 30 seconds; returns its exit code and its stderr.
  """
  with ignoring():
    process = subprocess.Popen(
      command(workdir, *flags),
      cwd=ROOT,
      stdout=subprocess.PIPE,
      stderr=subprocess.PIPE,
      text=True,
      env={**os.environ, 'PYTHONUNBUFFERED': ''},
      start_new_session=True,
    )
  seen = any(printed.startswith(line) for printed in process.stdout)
  if hang_up:
    process.stdout.close()
    process.stderr.close()
  if process.poll() is None:
    for number in signals:
      os.killpg(process.pid, number)
  message = ''
  try:
    if hang_up:
      process.wait(timeout=30)
    else:
      _, message = process.communicate(timeout=30)
  except subprocess.TimeoutExpired:
    os.killpg(process.pid, signal.SIGKILL)
    raise
  assert seen, f'never printed {line!r}'
  return process.returncode, message


def check_stopped(code, message, stage):
  """The exit code and the message of a run that a signal has stopped."""
  assert code == 75, message
  assert f"stopped and saved in '{stage}'" in message
  assert 'the same command goes on' in message
  assert 'Traceback' not in message
