"""Measurements behind the choices of `dnal_jax/ops/convolution_cpu.py`.

  python benchmarks/conv_lowering.py [--json=FILE]

Times XLA's native operation against each other form that computes the same:

- the forward pass, input gradient and kernel gradient of a convolution
- max-pooling with its gradient
- matrix products over positions, against the transposed product
- selections of channels with their gradient, as an index against a product
- sums of channels and of their squares, at once against row by row

Rounds are interleaved. Prints the ratio native / form per shape as the median
of the rounds and the extremes. Above 1, the form is faster; a star marks the
form that is used.
"""

import argparse
from functools import partial
import time

import jax
import jax.numpy as jnp
import timing

from dnal_jax.ops import convolution, convolution_cpu

ROUNDS = 7
BATCH = 64
DENSE = {
  'convolution': convolution_cpu.CONVOLUTION,
  'matrix': convolution_cpu.MATRIX,
}
DEPTHWISE = {'shifted': convolution_cpu.SHIFTED}
# (side, input channels, output channels, kernel, stride, depthwise)
SHAPES = [
  *((side, 512, 512, 3, 1, False) for side in (1, 2, 3, 4)),
  (3, 128, 128, 3, 1, False),
  (4, 128, 128, 3, 1, False),
  (32, 16, 16, 3, 1, False),
  (32, 11, 11, 3, 1, False),
  (32, 16, 8, 3, 1, False),
  (32, 6, 6, 3, 1, False),
  *((32, inputs, 2 * inputs, 3, 2, False) for inputs in (3, 16, 45, 64, 96)),
  (16, 32, 64, 3, 2, False),
  (16, 29, 24, 3, 2, False),
  *((56, 64, outputs, 3, 2, False) for outputs in (64, 128)),
  (28, 128, 128, 3, 2, False),
  (16, 32, 32, 3, 1, False),
  (16, 32, 23, 3, 1, False),
  (16, 23, 32, 3, 1, False),
  (16, 23, 23, 3, 1, False),
  (8, 64, 64, 3, 1, False),
  (8, 45, 45, 3, 1, False),
  (32, 64, 64, 3, 1, False),
  (32, 48, 48, 3, 1, False),
  (32, 45, 45, 3, 1, False),
  (16, 128, 128, 3, 1, False),
  (16, 96, 96, 3, 1, False),
  (16, 90, 90, 3, 1, False),
  (8, 256, 256, 3, 1, False),
  (8, 181, 181, 3, 1, False),
  (32, 24, 144, 1, 1, False),
  (32, 144, 24, 1, 1, False),
  *((side, 96, 96, 3, stride, True) for side in (8, 16) for stride in (1, 2)),
  (32, 144, 144, 3, 1, True),
  (8, 96, 96, 5, 1, True),
]
# (positions, m, n): two maps with m and n channels, whose product is [m, n]
PRODUCTS = [
  (positions, round(times * n), n)
  for positions in (512, 8192)
  for n in (15, 24, 48, 72, 144, 255, 512)
  for times in (1.2, 4 / 3, 1.5, 2, 4)
]
# (side, channels, window, pad), with stride 2
POOLS = [(32, 64, 2, 0), (8, 256, 2, 0), (56, 64, 3, 1)]
# (side, channels of the map, channels after the selection)
SELECTIONS = [
  (32, 8, 16),
  (32, 13, 15),
  (16, 16, 32),
  (16, 29, 31),
  (8, 24, 64),
]
# (side, channels)
SUMS = [(32, 6), (32, 8), (32, 15), (32, 16), (16, 13), (8, 25)]


def seconds(f, *arguments):
  started = time.perf_counter()
  jax.block_until_ready(f(*arguments))
  return time.perf_counter() - started


def ratios(functions, *arguments):
  """{name: spread of native / name} of the seconds of each function."""
  compiled = {name: jax.jit(f) for name, f in functions.items()}
  runs = {name: partial(seconds, f, *arguments) for name, f in compiled.items()}
  took = timing.interleaved(runs, ROUNDS)
  native = took.pop('native')
  return {name: timing.ratio(native, own) for name, own in took.items()}


def with_gradient(f):
  def both(x, dy):
    y, pullback = jax.vjp(f, x)
    return y, pullback(dy)

  return both


def of_convolution(side, inputs, outputs, k, stride, depthwise):
  keys = jax.random.split(jax.random.key(0), 3)
  x = jax.random.normal(keys[0], (BATCH, side, side, inputs))
  shape = (k, k, 1 if depthwise else inputs, outputs)
  kernel = jax.random.normal(keys[1], shape)
  native = partial(convolution_cpu.native, stride=stride, depthwise=depthwise)
  dy = jax.random.normal(keys[2], jax.eval_shape(native, x, kernel).shape)
  chosen = convolution_cpu.choose(x, kernel, stride, depthwise)

  def by_input(dy, kernel, x):
    return jax.vjp(lambda x: native(x, kernel), x)[1](dy)[0]

  def by_kernel(dy, kernel, x):
    return jax.vjp(lambda kernel: native(x, kernel), kernel)[1](dy)[0]

  found = {}
  for operation, own, arguments in (
    ('forward', native, (x, kernel)),
    ('input_gradient', by_input, (dy, kernel, x)),
    ('kernel_gradient', by_kernel, (dy, kernel, x)),
  ):
    forms = {
      name: getattr(form, operation)
      for name, form in (DEPTHWISE if depthwise else DENSE).items()
    }
    if operation == 'kernel_gradient' and not depthwise and k > stride == 1:
      forms['split'] = convolution_cpu.SPLIT.kernel_gradient
    used = getattr(chosen, operation)
    functions = {n: partial(f, stride=stride) for n, f in forms.items()}
    found[operation] = {
      ('*' if forms[name] is used else '') + name: figures
      for name, figures in ratios(
        {'native': own, **functions}, *arguments
      ).items()
    }
  kind = 'depthwise' if depthwise else 'dense'
  return f'{kind} {side}x{side}, {inputs} to {outputs}, k{k} s{stride}', found


def pool(side, channels, window, pad):
  x = jax.random.normal(jax.random.key(0), (BATCH, side, side, channels))
  pads = ((0, 0), (pad, pad), (pad, pad), (0, 0))

  def native(x):
    shape, strides = (1, window, window, 1), (1, 2, 2, 1)
    return jax.lax.reduce_window(x, -jnp.inf, jax.lax.max, shape, strides, pads)

  ours = partial(convolution.max_pool, window=window, stride=2, pad=pad)
  dy = jnp.ones(jax.eval_shape(native, x).shape)
  both = {'native': with_gradient(native), '*choices': with_gradient(ours)}
  found = {'with gradient': ratios(both, x, dy)}
  return f'max-pool {side}x{side}, {channels}, k{window} s2', found


def product(positions, m, n):
  a, b = (jnp.ones((positions, channels)) for channels in (m, n))

  # Times 2, so that the transposed result is read, as it is in train steps.
  def native(a, b):
    return 2 * (a.T @ b)

  def transposed(a, b):  # as `convolution_cpu` does
    return 2 * jax.lax.optimization_barrier(b.T @ a).T

  name = ('*' if convolution_cpu.transposes(m, n) else '') + 'transposed'
  found = {'product': ratios({'native': native, name: transposed}, a, b)}
  return f'{m} x {n}, over {positions} positions', found


def selection(side, chosen, channels):
  """Spreads a map of `chosen` channels over `channels`, as before a sum of
  feature maps with different channels."""
  x = jax.random.normal(jax.random.key(0), (BATCH, side, side, chosen))
  ids = jax.random.permutation(jax.random.key(1), channels)[:chosen]
  column = {c: i for i, c in enumerate(sorted(ids.tolist()))}
  columns = tuple(column.get(c) for c in range(channels))

  def native(x):
    padded = jnp.pad(x, [(0, 0)] * 3 + [(0, 1)])
    index = [column.get(c, chosen) for c in range(channels)]
    return padded[..., jnp.array(index)]

  dy = jnp.ones((*x.shape[:3], channels))
  both = {
    'native': with_gradient(native),
    '*ours': with_gradient(
      partial(convolution.select_channels, columns=columns)
    ),
  }
  found = {'with gradient': ratios(both, x, dy)}
  return f'{chosen} of {channels} channels, {side}x{side}', found


def sums(side, channels):
  """Sums of channels and of their squares, as for a BatchNorm."""
  x = jax.random.normal(jax.random.key(0), (BATCH, side, side, channels))

  def native(x):
    return x.sum((0, 1, 2)), (x * x).sum((0, 1, 2))

  def ours(x):
    return convolution.channel_sums(x), convolution.channel_sums(x * x)

  found = {'forward': ratios({'native': native, '*ours': ours}, x)}
  return f'sums of {channels} channels, {side}x{side}', found


def main():
  parser = argparse.ArgumentParser()
  parser.add_argument('--json')
  flags = parser.parse_args()
  machine = timing.machine()
  print(', '.join(f'{k} {v}' for k, v in machine.items()))
  print(f'batch {BATCH}, {ROUNDS} rounds; native / form: median (min to max)')
  rows = []
  measured = [(of_convolution, shape) for shape in SHAPES]
  measured += [(product, shape) for shape in PRODUCTS]
  measured += [(pool, shape) for shape in POOLS]
  measured += [(selection, shape) for shape in SELECTIONS]
  measured += [(sums, shape) for shape in SUMS]
  for measure, arguments in measured:
    shape, operations = measure(*arguments)
    rows.append({'shape': shape, **operations})
    for operation, forms in operations.items():
      figures = '  '.join(
        f'{name:>12} {timing.describe(values):24}'
        for name, values in forms.items()
      )
      print(f'{shape:32} {operation:16} {figures.rstrip()}', flush=True)
  timing.save(flags.json, machine, conv_lowering=rows)


if __name__ == '__main__':
  main()
