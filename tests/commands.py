"""Runs of the commands: in this process, as a process, or as several."""

import contextlib
import io
import json
import os
import pathlib
import signal
import socket
import subprocess
import sys
from typing import Any, NamedTuple
from unittest import mock
import warnings

import pytest

from dnal_jax import cli
import dnal_jax.main

ROOT = pathlib.Path(__file__).parent.parent
# A run of seconds: one epoch of warm-up, two of search, one of fine-tuning.
SHORT = (
  '--config.stages.warmup.epochs=1',
  '--config.stages.search.epochs=2',
  '--config.stages.finetune.epochs=1',
)
# One that is stopped long before its end.
LONG = ('--config.stages.warmup.epochs=1000',)
KEYS = {
  *('network', 'dataset', 'class_names', 'seed', 'stages', 'rollbacks'),
  *('baseline', 'learned', 'gates', 'widths', 'target', 'init_from'),
  *('top1', 'top5', 'best_checkpoint', 'compact_max_abs_diff'),
  *('test_top1', 'test_top5', 'images'),
}


@contextlib.contextmanager
def ignoring(*numbers):
  """Has processes that are started in it ignore these signals and no other,
  whatever the shell that started pytest has them ignore."""
  before = {
    number: signal.signal(
      number, signal.SIG_IGN if number in numbers else signal.SIG_DFL
    )
    for number in (signal.SIGHUP, signal.SIGINT)
  }
  try:
    yield
  finally:
    for number, handler in before.items():
      signal.signal(number, handler)


def cannot_unshare(*unshare):
  """Why this command cannot start a process here; '' if it can."""
  try:
    done = subprocess.run(
      (*unshare, 'true'), capture_output=True, text=True, check=False
    )
  except OSError as error:
    return str(error)
  return done.stderr.strip()


def command(workdir, *flags, config='configs/quickstart.py'):
  return (
    *(sys.executable, '-m', 'dnal_jax.main'),
    *(f'--config={config}', f'--workdir={workdir}', *flags),
  )


class Ended(NamedTuple):
  """What a command that was run in this process has left."""

  code: int  # of its exit
  out: str
  err: str


def run_here(module: Any, *arguments: object, out: Any = None) -> Ended:
  """Runs a command in this process, with these arguments, from the root.

  `module` is the command's, such as `dnal_jax.summary`. For tests of messages
  and outputs, as starting a process takes seconds. `out` is its standard output
  in place of one that is kept. A process is needed where a
  test is about signals, several processes, the environment, or what `cli.main`
  does besides `cli.run`: logging, and ending without waiting for threads.

  Flags of the command have their defaults again afterwards, and flags that
  ml_collections has added for --config.KEY are removed.
  """
  known = set(module.FLAGS)
  argv = [module.__name__, *map(str, arguments)]
  out, err = out or io.StringIO(), io.StringIO()
  try:
    with (
      warnings.catch_warnings(),
      mock.patch.object(sys, 'argv', argv),
      contextlib.chdir(ROOT),
      contextlib.redirect_stdout(out),
      contextlib.redirect_stderr(err),
      pytest.raises(SystemExit) as end,
    ):
      cli.run(module.body, module.FLAGS)
  finally:
    for name in set(module.FLAGS) - known:
      delattr(module.FLAGS, name)
    module.FLAGS.unparse_flags()
  return Ended(end.value.code, out.getvalue(), err.getvalue())


def main(workdir, *flags, **kwargs):
  """The completed process of a run."""
  return subprocess.run(
    command(workdir, *flags, **kwargs),
    cwd=ROOT,
    capture_output=True,
    text=True,
    check=False,
  )


def start(workdir, *flags):
  """A process of a run, just started."""
  return subprocess.Popen(
    command(workdir, *flags),
    cwd=ROOT,
    stdout=subprocess.PIPE,
    stderr=subprocess.PIPE,
    text=True,
    env={**os.environ, 'PYTHONUNBUFFERED': '1'},
  )


def until(process, line):
  """Waits for a process to print a line that starts so."""
  seen = any(printed.startswith(line) for printed in process.stdout)
  assert seen, (f'never printed {line!r}', process.stderr.read())


class Processes:
  """Processes on this machine that together are one run."""

  def __init__(self, *commands):
    with socket.socket() as free:
      free.bind(('localhost', 0))
      address = f'localhost:{free.getsockname()[1]}'
    others = {
      'JAX_COORDINATOR_ADDRESS': address,
      'JAX_NUM_PROCESSES': str(len(commands)),
      'PYTHONPATH': str(ROOT),
      'PYTHONUNBUFFERED': '1',
    }
    self.all = [
      subprocess.Popen(
        one,
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, **others, 'JAX_PROCESS_ID': str(number)},
      )
      for number, one in enumerate(commands)
    ]

  def until(self, line):
    """Waits for the first process to print a line that starts so."""
    seen = any(printed.startswith(line) for printed in self.all[0].stdout)
    assert seen, (f'never printed {line!r}', self.ended())

  def ended(self):
    """(exit code, rest of stdout, stderr) of each, once all have ended."""
    ended = []
    for process in self.all:
      try:
        out, errors = process.communicate(timeout=300)
      except subprocess.TimeoutExpired:
        for other in self.all:
          other.kill()
        raise
      ended.append((process.returncode, out, errors))
    return ended


def succeed(workdir, *flags, **kwargs):
  """What a run prints, as a process that must end with exit code 0."""
  done = main(workdir, *flags, **kwargs)
  assert done.returncode == 0, done.stderr
  return done.stdout


def fail(workdir, *flags, **kwargs):
  """The one error message of a run, as a process that must end with exit code
  2."""
  done = main(workdir, *flags, **kwargs)
  return _message(Ended(done.returncode, done.stdout, done.stderr))


def fail_here(workdir, *flags, **kwargs):
  """`fail` by `run_here`, which takes seconds less; for what it is for."""
  arguments = command(workdir, *flags, **kwargs)[3:]
  return _message(run_here(dnal_jax.main, *arguments))


def _message(ended: Ended) -> str:
  assert ended.code == 2, ended
  messages = [n for n in ended.err.splitlines() if n.startswith('error: ')]
  assert len(messages) == 1, ended.err
  assert 'Traceback' not in ended.err
  return messages[0]


def result(workdir):
  """result.json without the times."""
  value = json.loads((workdir / 'result.json').read_text())
  for stage in value['stages']:
    del stage['seconds']
  return value


def metrics(workdir):
  """metrics.jsonl without the times."""
  lines = (workdir / 'metrics.jsonl').read_text().splitlines()
  rows = [json.loads(n) for n in lines]
  return [{k: v for k, v in r.items() if 'per_second' not in k} for r in rows]


def assert_same(a, b):
  """Asserts that two runs left the same files, byte for byte, times apart."""
  assert result(a) == result(b)
  assert metrics(a) == metrics(b)
  weights = 'model/variables.safetensors'
  for file in ('architecture.json', weights, f'warmup/{weights}'):
    assert (a / file).exists() == (b / file).exists()
    if (a / file).exists():
      assert (a / file).read_bytes() == (b / file).read_bytes()
