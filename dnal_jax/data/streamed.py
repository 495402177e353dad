"""Batches of images that are read, decoded and cropped while the run goes on.

B batch, H height, W width, C channels. Step t of a run sees the same images
in the same crops whatever was run before, on however many hosts: the order of
an epoch is a permutation drawn from (seed, epoch), each crop is drawn from
(seed, number of the image in the run). To go on at any step therefore costs
one permutation, and no image is read twice.
"""

from collections import deque
from collections.abc import Callable, Generator, Iterator
import ctypes
import functools
import os
from typing import Any

import jax
import numpy as np

from dnal_jax import errors
from dnal_jax.data import Data, batches, crops, records, splits
from dnal_jax.data.batches import Batch
from dnal_jax.data.inputs import StreamedInputs
from dnal_jax.parallel import mesh

_AHEAD = 2  # batches that wait on the host, and as many on the device
_CORES = (
  len(os.sched_getaffinity(0))
  if hasattr(os, 'sched_getaffinity')
  else (os.cpu_count() or 1)
)
# For each step from the given one on, with the records known to be broken:
# [B', 3] int64, rows of (number of the image in the run, record, weight).
Rows = Callable[[int, list[int]], Iterator[np.ndarray]]


class Streamed(StreamedInputs):
  """A `Source` (`sources.py`) that streams encoded images through tf.data.

  A host reads those rows of each batch that are its own. Images cross to the
  device as uint8 and are normalised there.
  """

  def __init__(
    self,
    data: Data,
    *,
    seed: int,
    batch_size: int,
    eval_batch_size: int,
    host: tuple[int, int] = (0, 1),  # which, of how many
  ):
    self._eval_batch_size, self._host = eval_batch_size, host
    _keep_freed_memory()
    for key, size in (
      ('batch_size', batch_size),
      ('eval_batch_size', eval_batch_size),
    ):
      if size % host[1]:
        raise errors.UserError(
          f'{key} is {size}, which {host[1]} hosts cannot share evenly'
        )
    opened = records.open_splits(data)
    if len(data.mean) != 3 or data.crop_pad:  # told after an unknown name
      raise errors.UserError(
        f"'{data.title}' is streamed, in 3 channels and cropped by"
        f' data.crop_scale: data.mean has {len(data.mean)} and data.crop_pad is'
        f' {data.crop_pad}; give them 3 numbers and 0'
      )
    train, validation = splits.held_out(len(opened.train), data)
    images = len(train)
    super().__init__(data, images=images, seed=seed, batch_size=batch_size)
    self._splits = {
      'train': ('train', train),
      'validation': ('train', np.sort(validation)),
      'test': ('test', np.arange(len(opened.test))),
    }
    self._records = opened._asdict()
    # Records of each split that could not be decoded, and are replaced by
    # their successors: as of the last batch that was handed out.
    self.broken: dict[str, list[int]] = {name: [] for name in self._splits}

  def train_inputs(self, first_step: int) -> Generator[Any, None, None]:
    """(images [B, H, W, C] uint8, labels [B] int32), on the device, of every
    step of the run from `first_step` on."""
    ids = self._splits['train'][1]
    mine = self._mine(self._batch_size)

    def rows(step: int, broken: list[int]) -> Iterator[np.ndarray]:
      while True:
        epoch, first = divmod(step, self.steps_per_epoch)
        order = np.random.default_rng((self._seed, epoch)).permutation(ids)
        order = self._replaced(order, broken)
        for at in range(first, self.steps_per_epoch):
          numbers = step * self._batch_size + mine
          chosen = order[at * self._batch_size + mine]
          yield np.stack([numbers, chosen, np.ones_like(mine)], 1)
          step += 1

    for images, labels, _ in self._on_device('train', rows, first_step):
      yield images, labels

  def eval_inputs(self, split: str) -> Iterator[tuple[Any, int]]:
    """(images [B, H, W, C] uint8, labels [B] int32, weights [B] float32), on
    the device, each for one batch, of a whole split; weights of 0 fill up the
    last batch."""
    _, ids = self._splits[split]
    mine = self._mine(self._eval_batch_size)

    def rows(step: int, broken: list[int]) -> Iterator[np.ndarray]:
      kept = self._replaced(ids, broken)
      for start in range(
        step * self._eval_batch_size, len(ids), self._eval_batch_size
      ):
        places = start + mine
        inside = np.minimum(places, len(ids) - 1)
        weights = (places < len(ids)) & (kept[inside] == ids[inside])
        yield np.stack([places, kept[inside], weights], 1)

    for inputs in self._on_device(split, rows, 0):
      yield inputs, 1

  def eval_batch(self, inputs: Any, index: jax.typing.ArrayLike) -> Batch:
    """The batch from its inputs, to be compiled into the evaluation."""
    del index  # there is one only
    images, labels, weights = inputs
    return Batch(batches.normalise(images, self._data), labels, weights)

  def broken_names(self) -> list[str]:
    """The images that could not be decoded, for people."""
    return [
      self._records[self._splits[split][0]].name(number)
      for split, numbers in self.broken.items()
      for number in numbers
    ]

  def _mine(self, batch_size: int) -> np.ndarray:
    """Which rows of a batch this host reads."""
    index, hosts = self._host
    share = batch_size // hosts
    return np.arange(index * share, (index + 1) * share)

  def _replaced(self, ids: np.ndarray, known: list[int]) -> np.ndarray:
    """`ids` with every broken record replaced by the next that is whole."""
    broken = np.isin(ids, known)
    if not broken.any():
      return ids
    whole = np.sort(ids[~broken])
    if not len(whole):
      raise errors.UserError(f"no image of '{self._data.title}' can be decoded")
    ids = ids.copy()
    ids[broken] = whole[np.searchsorted(whole, ids[broken]) % len(whole)]
    return ids

  def _on_device(self, split: str, rows: Rows, step: int) -> Iterator[Any]:
    """Batches on the device, some ahead of the one that is asked for."""
    ahead = deque()
    for batch, broken in self._read(split, rows, step):
      ahead.append((mesh.put_batch_sharded(batch), broken))
      if len(ahead) > _AHEAD:
        batch, self.broken[split] = ahead.popleft()
        yield batch
    for batch, broken in ahead:
      self.broken[split] = broken
      yield batch

  def _read(self, split: str, rows: Rows, step: int) -> Iterator[Any]:
    """Batches as numpy, and which records were known to be broken when they
    were read: a run that is resumed there meets the others again. Starts anew
    at every broken image."""
    broken = self.broken[split]
    failure = crops.import_tensorflow().errors.OpError
    while True:
      batches = iter(
        self._dataset(split, functools.partial(rows, step, broken))
      )
      try:
        for images, labels, weights in batches:
          yield (images.numpy(), labels.numpy(), weights.numpy()), broken
          step += 1
        return
      except failure as error:
        found = self._find_broken(split, next(rows(step, broken)), error)
        broken = sorted({*broken, *found})

  def _dataset(self, split: str, rows: Callable[[], Iterator[np.ndarray]]):
    tf = crops.import_tensorflow()
    size = self._batch_size if split == 'train' else self._eval_batch_size
    size //= self._host[1]
    data = tf.data.Dataset.from_generator(
      rows, output_signature=tf.TensorSpec((size, 3), tf.int64)
    )
    data = data.unbatch().map(self._example(split), _CORES)
    # As many threads as cores, no tuning: on two cores this doubles the rate.
    options = tf.data.Options()
    options.threading.private_threadpool_size = _CORES
    options.autotune.enabled = False
    return data.batch(size).prefetch(_AHEAD).with_options(options)

  @functools.cache  # noqa: B019 - one source a run
  def _example(self, split: str):
    """The graph function from a row to (image, label, weight)."""
    tf = crops.import_tensorflow()
    read = self._records[self._splits[split][0]].read
    size = self._data.image

    @tf.function(input_signature=[tf.TensorSpec((3,), tf.int64)])
    def example(row):
      encoded, label = read(row[1])
      if split == 'train':
        draws = tf.random.stateless_uniform(
          (crops.DRAWS,), (self._seed, row[0])
        )
        image = crops.random_crop(
          encoded,
          draws,
          size=size,
          scale=self._data.crop_scale,
          flip=self._data.flip,
        )
      else:
        image = crops.centre_crop(
          encoded, size=size, short_side=self._data.short_side
        )
      return image, tf.cast(label, tf.int32), tf.cast(row[2], tf.float32)

    return example

  def _find_broken(self, split: str, rows: np.ndarray, error) -> list[int]:
    """The records of a batch that failed which cannot be decoded.

    Raises:
      UserError: names them, unless the config says to go on without.
    """
    tf = crops.import_tensorflow()
    name = self._splits[split][0]
    found = []
    for row in rows:
      try:
        self._example(split)(row)
      except tf.errors.OpError:
        found.append(int(row[1]))
    names = [self._records[name].name(number) for number in found]
    if not found:
      raise errors.UserError(
        f"reading '{self._data.title}' failed: {error.message}"
      ) from error
    if not self._data.skip_broken:
      raise errors.UserError(
        f'cannot be decoded: {", ".join(names)}; replace it, or set'
        ' data.skip_broken=True to go on without'
      ) from error
    for image in names:
      print(f'skipped, cannot be decoded: {image}')
    return found


def _keep_freed_memory() -> None:
  """Has glibc keep freed memory for the next image instead of giving it back
  to the system, which costs as much time as decoding does.

  `benchmarks/input_pipeline.py` is half as fast without. (The custom on TPU
  machines is to preload another allocator, which does the same.)
  """
  try:
    mallopt = ctypes.CDLL(None).mallopt
  except (OSError, TypeError, AttributeError):
    return  # not glibc
  trim_threshold, top_pad, mmap_threshold = -1, -2, -3  # of <malloc.h>
  mallopt(mmap_threshold, 1 << 25)  # the largest that is allowed
  mallopt(trim_threshold, (1 << 31) - 1)
  mallopt(top_pad, 1 << 26)
