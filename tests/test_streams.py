"""Standard output and error that are lost, full or cannot show a letter.

A run that loses both is in test_interrupted.py.
"""

import os
import subprocess
import sys

from commands import ROOT

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
