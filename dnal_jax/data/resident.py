"""Batches of a data set that is kept on the device.

N images in all, B batch, H height, W width, C channels.
"""

from collections.abc import Iterator
from functools import partial
from typing import Any, NamedTuple

import jax
import numpy as np

from dnal_jax.data import Data, batches, memory
from dnal_jax.data.batches import Batch
from dnal_jax.data.contents import Contents
from dnal_jax.parallel import mesh

# Upper bound of `steps_per_call`: enough that a call takes long compared with
# its overhead in Python, even if a step takes only a millisecond.
_MAX_STEPS_PER_CALL = 128


class _Splits(NamedTuple):
  """What `ResidentSource.open` adds."""

  train: memory.Split  # on the device
  validation: memory.Split  # on the device
  test: memory.Split  # numpy: read once, at the end
  eval_batch_size: int


class ResidentSource:
  """A `Source` of small images: all of them are copied to the device once.

  Made by the constructor it has no images, only shapes and programs; `open`
  reads the images.
  """

  def __init__(self, data: Data, *, images: int, seed: int, batch_size: int):
    self._data, self._seed, self._batch_size = data, seed, batch_size
    self.images = images
    self.steps_per_epoch = images // batch_size
    self.steps_per_call = _MAX_STEPS_PER_CALL
    self.broken: dict[str, list[int]] = {}
    self.contents = Contents((), {})
    self._splits: _Splits | None = None
    self._permutation = jax.jit(
      partial(batches.epoch_order, seed), static_argnums=1
    )
    self._order: tuple[int, jax.Array] | None = None  # (epoch, permutation)

  @classmethod
  def open(
    cls, data: Data, *, seed: int, batch_size: int, eval_batch_size: int
  ) -> 'ResidentSource':
    """Reads the images and copies them to the devices of the current mesh.

    Raises:
      UserError: the data set is missing, or its sizes do not fit.
    """
    splits = memory.load(data)
    images = len(splits.train.labels)
    source = cls(data, images=images, seed=seed, batch_size=batch_size)
    source.contents = splits.contents
    source._splits = _Splits(
      train=mesh.put_replicated(splits.train),
      validation=mesh.put_replicated(splits.validation),
      test=splits.test,
      eval_batch_size=eval_batch_size,
    )
    return source

  def inputs(self, step: int, n: int) -> Any:
    """(images [N, H, W, C] uint8, labels [N] int32, order [N] int32) of steps
    `step` to `step + n - 1` of the run, which lie in one epoch."""
    epoch, position = divmod(step, self.steps_per_epoch)
    assert position + n <= self.steps_per_epoch
    if self._order is None or self._order[0] != epoch:
      self._order = epoch, self._permutation(epoch, self.images)
    return *self._loaded.train, self._order[1]

  def input_shapes(self) -> Any:
    """`inputs` as shapes, replicated on the devices of the current mesh."""
    order = jax.ShapeDtypeStruct((self.images,), np.int32)
    shapes = batches.image_and_label_shapes(self.images, self._data)
    return mesh.replicated_shapes((*shapes, order))

  def train_batch(self, inputs: Any, step: jax.Array) -> Batch:
    """The batch of a step; to be compiled into that step."""
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
    """Yields once: (images [N, H, W, C] uint8, labels [N] int32) of a split,
    and the number of its batches."""
    if split == 'validation':
      arrays = self._loaded.validation
    else:
      arrays = mesh.put_replicated(self._loaded.test)
    yield arrays, -(-len(arrays.labels) // self._loaded.eval_batch_size)

  def eval_batch(self, inputs: Any, index: jax.typing.ArrayLike) -> Batch:
    """Batch `index` of a split; to be compiled into the evaluation."""
    images, labels = inputs
    batch_size = self._loaded.eval_batch_size
    return batches.eval_batch(
      images,
      labels,
      index * batch_size,
      batch_size=batch_size,
      data=self._data,
    )

  def broken_names(self) -> list[str]:
    """Empty: a data set with a broken image is refused."""
    return []

  def close(self) -> None:
    """Does nothing: no image is read ahead."""

  @property
  def _loaded(self) -> _Splits:
    if self._splits is None:
      raise RuntimeError('this source was made without images')
    return self._splits
