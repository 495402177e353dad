"""Why `dnal_jax/conv.py` decides as it does: each lowering, side by side.

  python benchmarks/conv_lowering.py

Times the forward pass and the forward pass with both gradients of XLA's own
convolution and of ours, interleaved, and prints the ratio native / ours per
shape as the median of the pairs with the extremes. Above 1, ours is faster.
"""

from functools import partial
import json
import os
import platform
import statistics
import time

import jax
import jax.numpy as jnp

from dnal_jax import conv

PAIRS = 7
# (batch, side, input channels, kernel, stride, depthwise)
SHAPES = [
  *((64, side, 512, 3, 1, False) for side in (1, 2, 3, 4)),
  *((64, side, 128, 3, 1, False) for side in (2, 3, 4, 6, 8, 16)),
  *((64, side, 64, 1, 1, False) for side in (8, 16, 32)),
  *((64, side, 96, 3, stride, True) for side in (8, 16) for stride in (1, 2)),
  (64, 8, 96, 5, 1, True),
]


def both_gradients(f, x, kernel):
  """f's value and its gradients for an upstream gradient of ones."""
  y, pullback = jax.vjp(f, x, kernel)
  return y, pullback(jnp.ones_like(y))


def seconds(f, *arguments):
  started = time.perf_counter()
  jax.block_until_ready(f(*arguments))
  return time.perf_counter() - started


def compare(native, ours, x, kernel):
  """Ratios native / ours of PAIRS interleaved runs, after one to compile."""
  functions = [jax.jit(f) for f in (native, ours)]
  for f in functions:
    seconds(f, x, kernel)
  ratios = []
  for _ in range(PAIRS):
    a, b = (seconds(f, x, kernel) for f in functions)
    ratios.append(a / b)
  return {
    'median': statistics.median(ratios),
    'min': min(ratios),
    'max': max(ratios),
  }


def measure(batch, side, channels, k, stride, depthwise):
  x = jax.random.normal(jax.random.key(0), (batch, side, side, channels))
  shape = (k, k, 1 if depthwise else channels, channels)
  kernel = jax.random.normal(jax.random.key(1), shape)
  native = partial(conv._native, stride=stride, depthwise=depthwise)
  other = conv._shifted_products if depthwise else conv._im2col
  ours = partial(other, stride=stride)
  return {
    'map': f'{side}x{side}',
    'channels': channels,
    'kernel': k,
    'stride': stride,
    'depthwise': depthwise,
    'forward': compare(native, ours, x, kernel),
    'with_gradients': compare(
      partial(both_gradients, native), partial(both_gradients, ours), x, kernel
    ),
  }


def main():
  print(
    f'{platform.machine()}, {os.cpu_count()} cores,'
    f' {jax.devices()[0].device_kind}, jax {jax.__version__}, batch 64;'
    ' native / ours: median (min to max)'
  )
  rows = []
  for shape in SHAPES:
    row = measure(*shape)
    rows.append(row)
    kind = 'depthwise' if row['depthwise'] else 'dense'
    figures = [
      '{median:7.2f} ({min:.2f} to {max:.2f})'.format(**row[key])
      for key in ('forward', 'with_gradients')
    ]
    print(
      f'{kind:9} {row["map"]:>6} {row["channels"]:>4} channels'
      f' k{row["kernel"]} s{row["stride"]}  forward {figures[0]:26}'
      f' with gradients {figures[1]}',
      flush=True,
    )
  print(json.dumps(rows))


if __name__ == '__main__':
  main()
