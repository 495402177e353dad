"""CIFAR-size images: data in device memory against feeding from the host.

  python benchmarks/device_data.py [--network=vgg7_digits] [--image=32]
    [--batch=128] [--rounds=5] [--steps=64] [--json=FILE]

Times the same warm-up steps on 10,000 random images, cropped and flipped, fed
in three ways: several steps per call on a data set in device memory (as in
runs), one step per call on it, and batches made by numpy on the host. Prints
steps/s and the time of a step relative to one call of as many steps; what
exceeds 1 is the cost of the loop.
"""

import argparse
from collections.abc import Iterator
import functools
import time
from typing import Any

import contenders
import jax
import jax.numpy as jnp
import numpy as np
import timing

from dnal_jax import models
from dnal_jax.data import Data, batches
from dnal_jax.training import loop

IMAGES = 10_000


class OnDevice:
  """A `Source` of random images in device memory."""

  def __init__(self, data, batch_size, steps_per_call):
    self.data, self.batch_size = data, batch_size
    self.steps_per_call = steps_per_call
    self.steps_per_epoch = IMAGES // batch_size
    images, labels = arrays(data)
    order = batches.epoch_order(0, jnp.asarray(0), IMAGES)
    self._inputs = jax.device_put((images, labels, order))

  def train_batch(self, inputs, number):
    position = number % self.steps_per_epoch
    images, labels, order = inputs
    return batches.train_batch(
      images,
      labels,
      order,
      number,
      position,
      seed=0,
      batch_size=self.batch_size,
      data=self.data,
    )

  def inputs(self, step, n) -> Any:
    del step, n
    return self._inputs


class FromHost(OnDevice):
  """The same images, cropped and flipped by numpy and sent batch by batch."""

  def train_batch(self, inputs, number):
    del number
    images, labels = inputs
    pixels = batches.normalise(images, self.data)
    return batches.Batch(pixels, labels, jnp.ones(len(labels)))

  def inputs(self, step, n) -> Any:
    del step, n
    return next(self._batches)

  @functools.cached_property
  def _batches(self) -> Iterator[Any]:
    return self._from_host()

  def _from_host(self) -> Iterator[Any]:
    images, labels = arrays(self.data)
    rng, side, pad = np.random.default_rng(0), self.data.image, 4
    while True:
      chosen = rng.integers(0, IMAGES, self.batch_size)
      margins = ((0, 0), (pad, pad), (pad, pad), (0, 0))
      padded = np.pad(images[chosen], margins)
      corners = rng.integers(0, 2 * pad + 1, (self.batch_size, 2))
      turns = rng.choice([1, -1], self.batch_size)
      cropped = np.stack(
        [
          image[i : i + side, j : j + side][:, ::turn]
          for image, (i, j), turn in zip(padded, corners, turns, strict=True)
        ]
      )
      yield jax.device_put((cropped, labels[chosen]))


def arrays(data):
  rng = np.random.default_rng(0)
  shape = (IMAGES, data.image, data.image, 3)
  images = rng.integers(0, 256, shape).astype(np.uint8)
  return images, rng.integers(0, 10, IMAGES).astype(np.int32)


def runner(net, shape, source: Any, steps):
  """() -> seconds of one step."""
  compiled = loop.CompiledStage(
    net, contenders.WARMUP, source, dtype='float32', first_step=0
  )
  warmup = contenders.Contender(net, contenders.WARMUP)
  state = contenders.begin(warmup, shape)

  def run():
    nonlocal state
    started = time.perf_counter()
    state = contenders.run_loop(compiled, state, source, steps)
    return (time.perf_counter() - started) / steps

  return run


def alone(net, shape, source: Any, steps):
  """() -> seconds of one step where all steps are one call."""
  compiled = loop.CompiledStage(
    net, contenders.WARMUP, source, dtype='float32', first_step=0
  )
  warmup = contenders.Contender(net, contenders.WARMUP)
  state = contenders.begin(warmup, shape)

  def run():
    nonlocal state
    started = time.perf_counter()
    inputs = source.inputs(0, steps)
    state, _ = compiled.run_steps(state, inputs, steps, epoch=0)
    jax.block_until_ready(state)
    return (time.perf_counter() - started) / steps

  return run


def main():
  parser = argparse.ArgumentParser()
  parser.add_argument('--network', default='vgg7_digits')
  parser.add_argument('--image', type=int, default=32)
  parser.add_argument('--batch', type=int, default=128)
  parser.add_argument('--rounds', type=int, default=5)
  parser.add_argument('--steps', type=int, default=64)
  parser.add_argument('--json')
  flags = parser.parse_args()
  machine = timing.machine()
  print(', '.join(f'{k} {v}' for k, v in machine.items()))
  side = flags.image
  data = Data(
    'random',
    mean=(0.5,) * 3,
    std=(0.3,) * 3,
    image=side,
    classes=10,
    validation=1,
    flip=True,
    crop_pad=4,
  )
  net, shape = models.get(flags.network).build(classes=10), (side, side, 3)
  several = OnDevice(data, flags.batch, flags.steps)
  runs = {
    'in one call': alone(net, shape, several, flags.steps),
    'on device': runner(net, shape, several, flags.steps),
    'on device, one step a call': runner(
      net, shape, OnDevice(data, flags.batch, 1), flags.steps
    ),
    'from host': runner(
      net, shape, FromHost(data, flags.batch, 1), flags.steps
    ),
  }
  seconds = timing.interleaved(runs, flags.rounds)
  print(
    f'{flags.network} on {side}x{side}, batch {flags.batch}, {flags.rounds}'
    f' interleaved rounds of {flags.steps} steps: median (min to max)'
  )
  rows = {}
  for name, values in seconds.items():
    rates = timing.spread([1 / value for value in values])
    over = timing.ratio(values, seconds['in one call'])
    rows[name] = {'steps/s': rates, 'time over one call': over}
    print(
      f'{name:27} {timing.describe(rates, ".1f"):26} steps/s,'
      f' time over one call {timing.describe(over, ".3f")}'
    )
  timing.save(flags.json, machine, device_data=rows)


if __name__ == '__main__':
  main()
