"""Shared by the benchmarks: interleaved rounds, their spread, the machine."""

import importlib.metadata
import json
import os
import platform
import statistics
import subprocess
import time

import jax
import jax.numpy as jnp
import numpy as np


def save(path, machine, **rows):
  """Writes machine and rows to a JSON file; does nothing if `path` is None."""
  if path:
    with open(path, 'w') as file:
      json.dump({'machine': machine, **rows}, file, indent=1)


def machine():
  """{name: value} of the hardware and versions that the figures depend on."""
  packages = ('jax', 'flax', 'torch')
  found = {'device': jax.devices()[0].device_kind, 'cores': os.cpu_count()}
  for line in _lines('/proc/cpuinfo'):
    if line.startswith('model name'):
      found['processor'] = line.split(':', 1)[1].strip()
      break
  found['python'] = platform.python_version()
  for name in packages:
    try:
      found[name] = importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
      found[name] = None
  found['GLIBC_TUNABLES'] = os.environ.get('GLIBC_TUNABLES')
  if jax.default_backend() == 'gpu':
    query = (
      'nvidia-smi',
      '--query-gpu=driver_version',
      '--format=csv,noheader',
    )
    done = subprocess.run(query, capture_output=True, text=True, check=False)
    found['driver'] = done.stdout.strip() or None
  return found


def _lines(path):
  try:
    with open(path) as file:
      return file.readlines()
  except OSError:
    return []


def interleaved(contenders, rounds):
  """{name: [seconds of each round]} of functions that return seconds.

  Each is called once untimed, then once per round; the order rotates.
  """
  names = list(contenders)
  for name in names:
    contenders[name]()
  found = {name: [] for name in names}
  for i in range(rounds):
    at = i % len(names)
    for name in names[at:] + names[:at]:
      found[name].append(contenders[name]())
  return found


def spread(values):
  """{median, min, max} of some numbers."""
  return {
    'median': statistics.median(values),
    'min': min(values),
    'max': max(values),
  }


def ratio(above, below):
  """Spread of the ratios of two contenders, round by round."""
  return spread([a / b for a, b in zip(above, below, strict=True)])


def describe(figures, form='.2f'):
  """'median (min to max)' of a spread."""
  median, low, high = (
    format(figures[k], form) for k in ('median', 'min', 'max')
  )
  return f'{median} ({low} to {high})'


def peak(dtype):
  """Multiply-adds per second of a large matrix product on this device (on a CPU
  by numpy's BLAS), which shares of the peak refer to."""
  on_cpu = jax.default_backend() == 'cpu'
  n = 2048 if on_cpu else 8192
  if on_cpu:
    a, product = np.ones((n, n), np.float32), np.matmul
  else:
    a, product = jnp.ones((n, n), dtype), jax.jit(jnp.matmul)
  jax.block_until_ready(product(a, a))
  best = 0.0
  for _ in range(5):
    started = time.perf_counter()
    jax.block_until_ready([product(a, a) for _ in range(4)])
    best = max(best, 4 * n**3 / (time.perf_counter() - started))
  return best
