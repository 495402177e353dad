"""Time from the start of the process to the end of the first train step.

  python benchmarks/startup.py [--config=configs/quickstart.py] [ROUNDS]

"cold" starts with an empty cache of compiled programs, "warm" with the cache
that the cold start has written. Each start is a process that runs the real
command line and exits after the first step.
"""

import json
import os
import pathlib
import platform
import statistics
import subprocess
import sys
import tempfile
import time

import jax

ROOT = pathlib.Path(__file__).parent.parent
DRIVER = """
import os, sys, time
import jax
from dnal_jax.training import loop

run_steps = loop.CompiledStage.run_steps

def first_step(self, state, inputs, steps, epoch):
  jax.block_until_ready(run_steps(self, state, inputs, 1, epoch))
  print(time.time(), 'tensorflow' in sys.modules, flush=True)
  os._exit(0)

loop.CompiledStage.run_steps = first_step
import runpy
runpy.run_module('dnal_jax.main', run_name='__main__')
"""


def start(config, workdir, cache):
  """Seconds to the first step; exits if TensorFlow was imported."""
  environment = {**os.environ, 'JAX_COMPILATION_CACHE_DIR': str(cache)}
  environment['JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS'] = '0.2'
  began = time.time()
  done = subprocess.run(
    [sys.executable, '-c', DRIVER, config, f'--workdir={workdir}'],
    cwd=ROOT,
    env=environment,
    capture_output=True,
    text=True,
    check=False,
  )
  if done.returncode:
    sys.exit(done.stderr)
  ended, tensorflow = done.stdout.split()[-2:]
  if tensorflow == 'True':
    sys.exit('TensorFlow was imported before the first step')
  return float(ended) - began


def main():
  flags = [a for a in sys.argv[1:] if a.startswith('--config=')]
  numbers = [a for a in sys.argv[1:] if not a.startswith('--')]
  config = flags[0] if flags else '--config=configs/quickstart.py'
  rounds = int(numbers[0]) if numbers else 3
  found = {'cold': [], 'warm': []}
  for _ in range(rounds):
    with tempfile.TemporaryDirectory() as directory:
      for name, values in found.items():
        workdir = pathlib.Path(directory, name)
        values.append(start(config, workdir, pathlib.Path(directory, 'cache')))
  print(
    f'{platform.machine()}, {os.cpu_count()} cores, jax {jax.__version__},'
    f' {config}: seconds to the first step, median (min to max) of {rounds}'
  )
  for name, values in found.items():
    median = statistics.median(values)
    print(f'{name}  {median:6.2f} ({min(values):.2f} to {max(values):.2f})')
  print(json.dumps({'startup': found}))


if __name__ == '__main__':
  main()
