"""Batches of a data set that lies on the device as a whole.

N images in all, B batch, H height, W width, C channels.
"""

from collections.abc import Generator, Iterator
from functools import partial
from typing import Any

import jax

from dnal_jax import mesh
from dnal_jax.data import Data, batches, memory
from dnal_jax.step import Batch

# What a call may last where a step takes a millisecond; slower ones get fewer.
_STEPS_AT_ONCE = 128


class Resident:
  """A `Source` (`sources.py`) of small images: no input bottleneck."""

  def __init__(
    self, data: Data, *, seed: int, batch_size: int, eval_batch_size: int
  ):
    splits = memory.load(data)
    self._data, self._seed = data, seed
    self._batch_size, self._eval_batch_size = batch_size, eval_batch_size
    self._train = mesh.put_whole(splits.train)
    self._validation = mesh.put_whole(splits.validation)
    self._test = splits.test  # read once, at the end
    self._order = jax.jit(partial(batches.epoch_order, seed), static_argnums=1)
    self.images = len(splits.train.labels)
    self.steps_per_epoch = self.images // batch_size
    self.steps_at_once = _STEPS_AT_ONCE
    self.broken: dict[str, list[int]] = {}

  def train_inputs(self, first_step: int) -> Generator[Any, None, None]:
    """(images [N, H, W, C] uint8, labels [N] int32, order [N] int32) of every
    step of the run from `first_step` on."""
    step = first_step
    while True:
      epoch, at = divmod(step, self.steps_per_epoch)
      order = self._order(epoch, self.images)
      for _ in range(at, self.steps_per_epoch):
        yield *self._train, order
        step += 1

  def train_batch(self, inputs: Any, step: jax.Array) -> Batch:
    """The batch of a step from its inputs, to be compiled into it."""
    images, labels, order = inputs
    return batches.train_batch(
      images,
      labels,
      order,
      step,
      step % self.steps_per_epoch,
      seed=self._seed,
      batch_size=self._batch_size,
      data=self._data,
    )

  def eval_inputs(self, split: str) -> Iterator[tuple[Any, int]]:
    """(images [N, H, W, C] uint8, labels [N] int32) of a split, and the number
    of its batches."""
    if split == 'validation':
      arrays = self._validation
    else:
      arrays = mesh.put_whole(self._test)
    yield arrays, -(-len(arrays.labels) // self._eval_batch_size)

  def eval_batch(self, inputs: Any, index: jax.typing.ArrayLike) -> Batch:
    """A batch from its inputs, to be compiled into the evaluation."""
    images, labels = inputs
    return batches.eval_batch(
      images,
      labels,
      index * self._eval_batch_size,
      batch_size=self._eval_batch_size,
      data=self._data,
    )

  def broken_names(self) -> list[str]:
    """None: these data sets are whole or refused."""
    return []
