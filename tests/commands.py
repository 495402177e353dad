"""Runs of the command line, for the tests that need them."""

import json
import os
import pathlib
import socket
import subprocess
import sys

ROOT = pathlib.Path(__file__).parent.parent
# A run of seconds: one epoch of warm-up, two of search, one of fine-tuning.
SHORT = (
  '--config.stages.warmup.epochs=1',
  '--config.stages.search.epochs=2',
  '--config.stages.finetune.epochs=1',
)
# One that is stopped long before its end.
LONG = (
  '--config.stages.warmup.epochs=1000',
  '--config.stages.warmup.train.weights.lr.horizon=2000.0',
)
KEYS = {
  *('network', 'dataset', 'seed', 'stages', 'rollbacks'),
  *('baseline', 'learned', 'gates'),
  *('top1', 'top5', 'best_checkpoint', 'compact_max_abs_diff'),
  *('test_top1', 'test_top5'),
}


def command(workdir, *flags, config='configs/quickstart.py'):
  return (
    *(sys.executable, '-m', 'dnal_jax.main'),
    *(f'--config={config}', f'--workdir={workdir}', *flags),
  )


def main(workdir, *flags, **kwargs):
  return subprocess.run(
    command(workdir, *flags, **kwargs),
    cwd=ROOT,
    capture_output=True,
    text=True,
    check=False,
  )


def start(workdir, *flags):
  """A process that runs it, alone."""
  return subprocess.Popen(
    command(workdir, *flags),
    cwd=ROOT,
    stdout=subprocess.PIPE,
    stderr=subprocess.PIPE,
    text=True,
    env={**os.environ, 'PYTHONUNBUFFERED': '1'},
  )


def until(process, line):
  """Waits for a process to print such a line."""
  seen = any(printed.startswith(line) for printed in process.stdout)
  assert seen, (f'never printed {line!r}', process.stderr.read())


class Processes:
  """Commands that are one run, as processes on this machine."""

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
    """Waits for the first process to print such a line."""
    seen = any(printed.startswith(line) for printed in self.all[0].stdout)
    assert seen, (f'never printed {line!r}', self.ended())

  def ended(self):
    """Of each: (exit code, output that is left, what it told as an error)."""
    told = []
    for process in self.all:
      try:
        out, errors = process.communicate(timeout=300)
      except subprocess.TimeoutExpired:
        for other in self.all:
          other.kill()
        raise
      told.append((process.returncode, out, errors))
    return told


def succeed(workdir, *flags, **kwargs):
  done = main(workdir, *flags, **kwargs)
  assert done.returncode == 0, done.stderr
  return done.stdout


def fail(workdir, *flags, **kwargs):
  """The one message of a command that must give up with exit code 2."""
  done = main(workdir, *flags, **kwargs)
  assert done.returncode == 2, (done.returncode, done.stdout, done.stderr)
  told = [n for n in done.stderr.splitlines() if n.startswith('error: ')]
  assert len(told) == 1, done.stderr
  assert 'Traceback' not in done.stderr
  return told[0]


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
  """Two runs left the same, byte for byte, times apart."""
  assert result(a) == result(b)
  assert metrics(a) == metrics(b)
  for file in ('architecture.json', 'model/variables.safetensors'):
    assert (a / file).read_bytes() == (b / file).read_bytes()
