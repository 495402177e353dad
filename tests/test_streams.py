"""Standard output and error that are lost, full or cannot show a letter.

A run that loses both is in test_interrupted.py.
"""

import logging
import os
import subprocess
import sys

from commands import ROOT
import pytest

from dnal_jax.parallel import streams

PRINTS = """
import sys
from absl import flags
from dnal_jax import cli, errors
def body(argv):
  print('first')
  sys.stdin.readline()  # until the reader is gone
  for stream in (sys.stdout, sys.stderr):
    print('Gr\\u00f6\\u00dfe' * 5000, file=stream)
  if argv[1:]:
    raise errors.Stopped('where')
cli.main(body, flags.FlagValues())
"""


def start(*arguments, before=(), **streams):
  """A process that prints, waits for its standard input to end, and prints
  more; with an argument, its exit code is 75."""
  return subprocess.Popen(
    (*before, sys.executable, '-c', PRINTS, *arguments),
    cwd=ROOT,
    env={
      **os.environ,
      'PYTHONIOENCODING': 'ascii',
      'PYTHONUNBUFFERED': '',  # as if it were not set
    },
    stdin=subprocess.PIPE,
    **streams,
  )


def test_no_stream_changes_how_a_process_ends():
  """Not a pipe whose reader has gone, a full disk, or one that is closed. And
  what ASCII lacks is escaped."""
  pipes = {'stdout': subprocess.PIPE, 'stderr': subprocess.PIPE}
  close = ('bash', '-c', 'exec "$@" >&- 2>&-', 'bash')
  with open('/dev/full', 'wb') as full:
    ascii_, gone, closed, on_full_disk = (
      start(**pipes),
      start('75', **pipes),
      start(before=close),
      start(stdout=full, stderr=full),
    )
  assert gone.stdout.readline() == b'first\n'  # though it is a pipe
  gone.stdout.close()
  gone.stderr.close()
  out, err = ascii_.communicate(timeout=60)
  assert out == b'first\n' + rb'Gr\xf6\xdfe' * 5000 + b'\n'
  assert err == rb'Gr\xf6\xdfe' * 5000 + b'\n'
  assert ascii_.returncode == 0
  for process, code in ((gone, 75), (closed, 0), (on_full_disk, 0)):
    process.stdin.close()
    assert process.wait(timeout=60) == code


def test_a_full_pipe_that_does_not_block():
  """As another program that shares it may have left it."""
  reader, writer = os.pipe()
  os.set_blocking(writer, False)
  with open(reader, 'rb'), streams._Lossy(writer, 'w') as stream:
    size = stream.write(bytes(2**20))
    assert size < 2**20
    assert stream.write(b'more') == 4


ABORTS = """
import os
from dnal_jax.parallel import processes
processes._report_abort()
os.abort()
"""


def test_a_process_that_jax_aborts_without_standard_error():
  with open('/dev/full', 'wb') as full:
    done = subprocess.run(
      (sys.executable, '-c', ABORTS), cwd=ROOT, stderr=full, check=False
    )
  assert done.returncode == 75


READER = """
import types

@types.coroutine
def pause():
  yield

async def read():
  try:
    await pause()
  finally:
    raise OSError('cannot read')
"""


@pytest.mark.parametrize(
  ('logger', 'path', 'message', 'shown'),
  [
    ('absl', 'orbax/checkpoint/_src/metadata.py', 'damaged', False),
    ('absl', 'tensorflow_datasets/core/reader.py', 'damaged', True),
    ('asyncio', 'base_events.py', 'Future exception was never ret...', False),
    ('asyncio', 'base_events.py', 'Task was destroyed but it is pe...', True),
  ],
)
def test_of_what_libraries_log_what_orbax_raises_is_hidden(
  logger, path, message, shown, monkeypatch
):
  log = logging.getLogger(logger)
  monkeypatch.setattr(log, 'filters', [])
  monkeypatch.setattr(sys, 'unraisablehook', sys.unraisablehook)
  streams.quiet_orbax()
  path = f'site-packages/{path}'
  record = logging.LogRecord(logger, logging.ERROR, path, 1, message, (), None)
  assert bool(log.filter(record)) == shown


@pytest.mark.parametrize('of_orbax', [True, False])
def test_of_coroutines_that_are_given_up_those_of_orbax_are_hidden(
  of_orbax, monkeypatch, capfd
):
  monkeypatch.setattr(sys, 'unraisablehook', sys.unraisablehook)
  streams.quiet_orbax()
  name = 'orbax' if of_orbax else 'mine'
  file = f'site-packages/{name}/serialization.py'
  found = {}
  exec(compile(READER, file, 'exec'), found)
  reader = found['read']()
  reader.send(None)
  del reader  # closed by Python, where it raises
  shown = capfd.readouterr().err
  assert ('cannot read' in shown) is not of_orbax
