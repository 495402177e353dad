"""Signals before, in and after a run, to any process and to process 1."""

import contextlib
import os
import pathlib
import select
import signal
import socket
import subprocess
import sys

from commands import ROOT, cannot_unshare, command, ignoring
from launching import until
import pytest

from dnal_jax.parallel import signals, stopping

SECONDS = 60  # in which a process must end


def in_container():
  """What to put before a command to have it run as process 1."""
  unshare = 'unshare', '--user', '--map-root-user', '--pid', '--fork'
  why = cannot_unshare(*unshare)
  if why:
    pytest.skip(f'needs a namespace of processes: {why}')
  return unshare


@pytest.fixture(params=['any process', 'process 1'])
def prefix(request):
  """What to put before a command."""
  return in_container() if request.param == 'process 1' else ()


@contextlib.contextmanager
def started(arguments, prefix=(), ignored=(), **kwargs):
  """(process, number of the one that runs `arguments`)."""
  with ignoring(*ignored):
    process = subprocess.Popen(
      (*prefix, *arguments),
      stdout=subprocess.PIPE,
      stderr=subprocess.PIPE,
      text=True,
      **kwargs,
    )
  with process:
    try:
      number = process.pid
      if prefix:
        children = pathlib.Path(f'/proc/{number}/task/{number}/children')
        until(children.read_text)
        number = int(children.read_text())
      yield process, number
    finally:
      with contextlib.suppress(ProcessLookupError):
        os.kill(number, signal.SIGKILL)


def assert_line(stream, text):
  """Its next line must contain `text`."""
  assert select.select([stream], [], [], SECONDS)[0], f'no {text!r}'
  assert text in stream.readline()


@pytest.fixture
def importing(tmp_path):
  """The arguments of a process that remains in `import jax`."""
  (tmp_path / 'jax.py').write_text(
    "import time\nprint('importing', flush=True)\ntime.sleep(600)\n"
  )
  path = f'{tmp_path}:{ROOT}'
  return {'cwd': tmp_path, 'env': {**os.environ, 'PYTHONPATH': path}}


@pytest.mark.parametrize('number', [signal.SIGTERM, signal.SIGHUP])
def test_a_signal_during_the_imports(number, prefix, importing):
  with started(command('run'), prefix, **importing) as (process, pid):
    assert_line(process.stdout, 'importing')
    os.kill(pid, number)
    _, err = process.communicate(timeout=SECONDS)
  name = signal.Signals(number).name
  assert err == (
    f'{name}: ended before the run began; the same command starts it\n'
  )
  assert process.returncode == 75


def test_ctrl_c_during_the_imports(importing):
  """Of `dnal train`, which is the same run."""
  dnal = sys.executable, '-m', 'dnal_jax', 'train', *command('run')[3:]
  with started(dnal, **importing) as (process, pid):
    assert_line(process.stdout, 'importing')
    os.kill(pid, signal.SIGINT)
    _, err = process.communicate(timeout=SECONDS)
  assert (process.returncode, err.count('\n')) == (130, 1)


def test_what_is_ignored_at_the_start_stays_ignored(importing):
  """SIGHUP, as `nohup` has it; SIGINT, as a script's background has it."""
  ignored = signal.SIGHUP, signal.SIGINT
  with started(command('run'), ignored=ignored, **importing) as (process, pid):
    assert_line(process.stdout, 'importing')
    for number in (*ignored, signal.SIGTERM):
      os.kill(pid, number)
    _, err = process.communicate(timeout=SECONDS)
  assert (process.returncode, err.partition(':')[0]) == (75, 'SIGTERM')


def test_a_stop_is_announced_while_the_main_thread_compiles():
  """Once; here it computes a hash, in which no handler of Python runs."""
  program = """
import hashlib
from dnal_jax.parallel import signals
signals.listen()
from dnal_jax.parallel.stopping import StopSignal
with StopSignal():
  print('running', flush=True)
  hashlib.pbkdf2_hmac('sha256', b'', b'', 1_000_000_000)
"""
  arguments = sys.executable, '-c', program
  with started(arguments, cwd=ROOT) as (process, pid):
    assert_line(process.stdout, 'running')
    os.kill(pid, signal.SIGINT)
    assert_line(process.stderr, 'SIGINT: stopping after this step, and saving')
    os.kill(pid, signal.SIGINT)
    _, err = process.communicate(timeout=SECONDS)
  assert err == 'SIGINT: leaving at once\n'
  assert process.returncode == -signal.SIGINT


def test_a_run_leaves_what_is_ignored_alone():
  before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
  try:
    with stopping.StopSignal() as stop:
      signal.raise_signal(signal.SIGHUP)
      stop.count(stop.vote())
    assert not stop.requested
    assert signals.heeded() == [signal.SIGTERM, signal.SIGINT]
  finally:
    signal.signal(signal.SIGHUP, before)


def test_a_signal_while_waiting_for_other_processes(tmp_path):
  """No handler of Python runs while JAX's runtime waits for them."""
  with socket.socket() as free:
    free.bind(('localhost', 0))
    port = free.getsockname()[1]

  def waits():
    with socket.socket() as probe:
      return not probe.connect_ex(('localhost', port))

  others = f'--coordinator_address=localhost:{port}', '--num_processes=2'
  arguments = command(tmp_path / 'run', *others, '--process_id=0')
  with started(arguments, cwd=ROOT) as (process, pid):
    until(waits)
    os.kill(pid, signal.SIGTERM)
    _, err = process.communicate(timeout=10)
  assert process.returncode == 75
  assert 'SIGTERM: ended before the run began' in err
  assert not (tmp_path / 'run').exists()


RUN = """
import sys, time
from dnal_jax.parallel import signals
signals.listen()
from dnal_jax.parallel import stopping
with stopping.StopSignal() as stop:
  print('in the run', flush=True)
  sys.stdin.readline()
print('after the run', flush=True)
sys.stdin.readline()
sys.exit(3)
"""


@pytest.mark.parametrize('after', [False, True], ids=['in', 'after'])
def test_the_first_signal_is_the_runs_and_the_second_leaves(after, prefix):
  """Also after the run, when a first one comes too late to change anything."""
  script = started(
    (sys.executable, '-c', RUN), prefix, cwd=ROOT, stdin=subprocess.PIPE
  )
  with script as (process, pid):
    assert_line(process.stdout, 'in the run')
    what = 'SIGTERM: stopping after this step'
    if after:
      process.stdin.write('\n')
      process.stdin.flush()
      assert_line(process.stdout, 'after the run')
      what = 'SIGTERM: ending'
    os.kill(pid, signal.SIGTERM)
    assert_line(process.stderr, what)
    os.kill(pid, signal.SIGTERM)
    assert process.wait(timeout=10) == (143 if prefix else -signal.SIGTERM)


OTHER = """
import time
from absl import flags
from dnal_jax import cli
def body(argv):
  print('begun', flush=True)
  time.sleep(600)
cli.main(body, flags.FlagValues())
"""


def test_other_commands_end_by_a_signal_as_process_1():
  script = started((sys.executable, '-c', OTHER), in_container(), cwd=ROOT)
  with script as (process, pid):
    assert_line(process.stdout, 'begun')
    os.kill(pid, signal.SIGTERM)
    assert process.wait(timeout=10) == 143


def test_a_signal_while_nobody_reads(importing):
  """A pipe that is full does not keep the process."""
  reader, writer = os.pipe()
  with open(reader, 'rb'), open(writer, 'wb', buffering=0) as stream:
    os.set_blocking(writer, False)
    while stream.write(bytes(4096)):
      pass
    os.set_blocking(writer, True)
    with ignoring():
      process = subprocess.Popen(
        command('run'), stdout=subprocess.PIPE, stderr=stream, **importing
      )
    with process:
      assert process.stdout.readline() == b'importing\n'
      process.send_signal(signal.SIGTERM)
      try:
        assert process.wait(timeout=SECONDS) == 75
      finally:
        process.kill()
