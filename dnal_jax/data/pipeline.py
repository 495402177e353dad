"""Reads, decodes and crops the images of a split with tf.data.

B batch (this host's rows of it), H height, W width, C channels.
"""

from collections.abc import Callable, Iterator
import functools
import os
from typing import Any, NamedTuple

import numpy as np

from dnal_jax import errors
from dnal_jax.data import Data, crops, records

PREFETCH = 2  # batches that wait on the host
_CORES = (
  len(os.sched_getaffinity(0))
  if hasattr(os, 'sched_getaffinity')
  else (os.cpu_count() or 1)
)
# (step, broken records) -> for each step from that one on, [B, 3] int64: rows
# of (number of the image in the run, record, weight).
Rows = Callable[[int, list[int]], Iterator[np.ndarray]]


class HostBatch(NamedTuple):
  """A batch in the memory of the host."""

  images: np.ndarray  # [B, H, W, C] uint8
  labels: np.ndarray  # [B] int32
  weights: np.ndarray  # [B] float32
  # Records known to be broken when the batch was read, ascending.
  broken: list[int]


class Pipeline:
  """The pipeline of one split.

  In training, the crop of an image is drawn from (seed, number of the image in
  the run); otherwise it is the centre.
  """

  def __init__(
    self,
    data: Data,
    split: records.TfRecords | records.Files,
    *,
    training: bool,
    seed: int,
    batch_size: int,  # rows of this host
  ):
    self._data, self._split = data, split
    self._training, self._seed = training, seed
    self._batch_size = batch_size

  def batches(
    self, rows: Rows, step: int, broken: list[int]
  ) -> Iterator[HostBatch]:
    """The batches of `rows` from `step` on.

    A record that cannot be decoded joins the broken ones, and reading starts
    again at the same step. Each batch has the records that were known to be
    broken when it was read: a run that resumes there finds the others again.

    Raises:
      UserError: an image cannot be decoded and the config does not skip it.
    """
    failure = crops.import_tensorflow().errors.OpError
    while True:
      dataset = iter(self._dataset(functools.partial(rows, step, broken)))
      try:
        for images, labels, weights in dataset:
          yield HostBatch(
            images.numpy(), labels.numpy(), weights.numpy(), broken
          )
          step += 1
        return
      except failure as error:
        found = self._find_broken(next(rows(step, broken)), error)
        broken = sorted({*broken, *found})

  def _dataset(self, rows: Callable[[], Iterator[np.ndarray]]) -> Any:
    tf = crops.import_tensorflow()
    size = self._batch_size
    data = tf.data.Dataset.from_generator(
      rows, output_signature=tf.TensorSpec((size, 3), tf.int64)
    )
    data = data.unbatch().map(self._example, _CORES)
    # One thread per core and no tuning: on two cores this doubles the rate.
    options = tf.data.Options()
    options.threading.private_threadpool_size = _CORES
    options.autotune.enabled = False
    return data.batch(size).prefetch(PREFETCH).with_options(options)

  @functools.cached_property
  def _example(self) -> Any:
    """The graph function from a row to (image, label, weight)."""
    tf = crops.import_tensorflow()
    size = self._data.image

    @tf.function(input_signature=[tf.TensorSpec((3,), tf.int64)])
    def example(row):
      encoded, label = self._split.read(row[1])
      if self._training:
        draws = tf.random.stateless_uniform(
          (crops.DRAWS,), (self._seed, row[0])
        )
        image = crops.random_crop(
          encoded,
          draws,
          size=size,
          scale=self._data.crop_scale,
          flip=self._data.flip,
          upright=self._split.upright,
        )
      else:
        image = crops.centre_crop(
          encoded,
          size=size,
          short_side=self._data.short_side,
          upright=self._split.upright,
        )
      return image, tf.cast(label, tf.int32), tf.cast(row[2], tf.float32)

    return example

  def _find_broken(self, rows: np.ndarray, error: Any) -> list[int]:
    """The records of a failed batch that cannot be decoded.

    Raises:
      UserError: names them, unless the config says to skip them.
    """
    tf = crops.import_tensorflow()
    found = []
    for row in rows:
      try:
        self._example(row)
      except tf.errors.OpError:
        found.append(int(row[1]))
    names = [self._split.name(number) for number in found]
    if not found:
      raise errors.UserError(
        f"reading '{self._data.title}' failed: {error.message}"
      ) from error
    if not self._data.skip_broken:
      raise errors.UserError(
        f'cannot be decoded: {", ".join(names)}; {self._split.mend}, or set'
        ' data.skip_broken=True to go on without'
      ) from error
    for image in names:
      print(f'skipped, cannot be decoded: {image}')
    return found
