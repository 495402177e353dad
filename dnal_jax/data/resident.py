"""Batches of a data set that lies on the device as a whole.

N images in all, B batch, H height, W width, C channels.
"""

from collections.abc import Generator, Iterator
from functools import partial
from typing import Any

import jax

from dnal_jax.data import Data, batches, memory
from dnal_jax.data.batches import Batch
from dnal_jax.data.inputs import ResidentInputs
from dnal_jax.parallel import mesh


class Resident(ResidentInputs):
  """A `Source` (`sources.py`) of small images: no input bottleneck."""

  def __init__(
    self, data: Data, *, seed: int, batch_size: int, eval_batch_size: int
  ):
    splits = memory.load(data)
    images = len(splits.train.labels)
    super().__init__(data, images=images, seed=seed, batch_size=batch_size)
    self._eval_batch_size = eval_batch_size
    self._train = mesh.put_replicated(splits.train)
    self._validation = mesh.put_replicated(splits.validation)
    self._test = splits.test  # read once, at the end
    self._order = jax.jit(partial(batches.epoch_order, seed), static_argnums=1)
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

  def eval_inputs(self, split: str) -> Iterator[tuple[Any, int]]:
    """(images [N, H, W, C] uint8, labels [N] int32) of a split, and the number
    of its batches."""
    if split == 'validation':
      arrays = self._validation
    else:
      arrays = mesh.put_replicated(self._test)
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
