"""Why `dnal_jax/conv.py` decides as it does: each form, side by side.

  python benchmarks/conv_lowering.py

Times the forward pass and the forward pass with both gradients of XLA's own
convolution (or pool) and of each other form that can compute it, interleaved,
and prints the ratio native / form per shape as the median of the rounds with
the extremes. Above 1, the form is faster; a star is on the one that is used.
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

ROUNDS = 7
BATCH = 64
FORMS = {
  'chunked': conv._CHUNKED,
  'matrix': conv._MATRIX,
  'shifted': conv._SHIFTED,
}
# (side, input channels, output channels, kernel, stride, depthwise)
SHAPES = [
  *((side, 512, 512, 3, 1, False) for side in (1, 2, 3, 4)),
  *((side, 128, 128, 3, 1, False) for side in (2, 3, 4, 6, 8)),
  (32, 16, 16, 3, 1, False),
  (32, 16, 32, 3, 2, False),
  (16, 32, 32, 3, 1, False),
  (8, 64, 64, 3, 1, False),
  (32, 64, 64, 3, 1, False),
  (16, 128, 128, 3, 1, False),
  (8, 256, 256, 3, 1, False),
  (8, 64, 384, 1, 1, False),
  (32, 24, 144, 1, 1, False),
  (32, 144, 24, 1, 1, False),
  *((side, 96, 96, 3, stride, True) for side in (8, 16) for stride in (1, 2)),
  (32, 144, 144, 3, 1, True),
  (8, 96, 96, 5, 1, True),
]
# (side, channels, window, pad), of stride 2
POOLS = [(32, 64, 2, 0), (8, 256, 2, 0), (56, 64, 3, 1)]


def seconds(f, *arguments):
  started = time.perf_counter()
  jax.block_until_ready(f(*arguments))
  return time.perf_counter() - started


def ratios(functions, *arguments):
  """{name: median, min, max of native / name} of interleaved rounds, after
  one to compile."""
  compiled = {name: jax.jit(f) for name, f in functions.items()}
  for f in compiled.values():
    seconds(f, *arguments)
  found = {name: [] for name in functions if name != 'native'}
  for _ in range(ROUNDS):
    took = {name: seconds(f, *arguments) for name, f in compiled.items()}
    for name, values in found.items():
      values.append(took['native'] / took[name])
  return {
    name: (statistics.median(values), min(values), max(values))
    for name, values in found.items()
  }


def with_gradients(f):
  def both(*arguments):
    *inputs, dy = arguments
    y, pullback = jax.vjp(f, *inputs)
    return y, pullback(dy)

  return both


def convolution(side, inputs, outputs, k, stride, depthwise):
  keys = jax.random.split(jax.random.key(0), 3)
  x = jax.random.normal(keys[0], (BATCH, side, side, inputs))
  shape = (k, k, 1 if depthwise else inputs, outputs)
  kernel = jax.random.normal(keys[1], shape)
  native = partial(conv._native, stride=stride, depthwise=depthwise)
  dy = jax.random.normal(keys[2], jax.eval_shape(native, x, kernel).shape)
  names = ['shifted'] if depthwise else ['chunked', 'matrix']

  def gradients(form, x, kernel, dy):
    return (
      form.forward(x, kernel, stride),
      form.input_gradient(dy, kernel, x, stride),
      form.kernel_gradient(dy, kernel, x, stride),
    )

  forward = {
    name: partial(FORMS[name].forward, stride=stride) for name in names
  }
  backward = {name: partial(gradients, FORMS[name]) for name in names}
  chosen = conv._on_cpu(x, kernel, stride, depthwise)
  return {
    'shape': f'{"depthwise" if depthwise else "dense"} {side}x{side},'
    f' {inputs} to {outputs}, k{k} s{stride}',
    'used': next(name for name in names if FORMS[name] is chosen),
    'forward': ratios({'native': native, **forward}, x, kernel),
    'with gradients': ratios(
      {'native': with_gradients(native), **backward}, x, kernel, dy
    ),
  }


def pool(side, channels, window, pad):
  x = jax.random.normal(jax.random.key(0), (BATCH, side, side, channels))
  pads = ((0, 0), (pad, pad), (pad, pad), (0, 0))

  def native(x):
    shape, strides = (1, window, window, 1), (1, 2, 2, 1)
    return jax.lax.reduce_window(x, -jnp.inf, jax.lax.max, shape, strides, pads)

  both = {
    'native': native,
    'choices': partial(conv.max_pool, window=window, stride=2, pad=pad),
  }
  dy = jnp.ones(jax.eval_shape(native, x).shape)
  gradients = {name: with_gradients(f) for name, f in both.items()}
  return {
    'shape': f'max-pool {side}x{side}, {channels}, k{window} s2',
    'used': 'choices',
    'forward': ratios(both, x),
    'with gradients': ratios(gradients, x, dy),
  }


def main():
  print(
    f'{platform.machine()}, {os.cpu_count()} cores,'
    f' {jax.devices()[0].device_kind}, jax {jax.__version__}, batch {BATCH};'
    ' native / form: median (min to max)'
  )
  rows = []
  measured = [(convolution, shape) for shape in SHAPES]
  for measure, shape in measured + [(pool, shape) for shape in POOLS]:
    row = measure(*shape)
    rows.append(row)
    for name in row['forward']:
      figures = [
        '{:7.2f} ({:.2f} to {:.2f})'.format(*row[key][name])
        for key in ('forward', 'with gradients')
      ]
      star = '*' if name == row['used'] else ' '
      print(
        f'{row["shape"]:32} {star}{name:8} forward {figures[0]:26}'
        f' with gradients {figures[1]}',
        flush=True,
      )
  print(json.dumps(rows))


if __name__ == '__main__':
  main()
