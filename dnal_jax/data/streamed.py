"""Batches of images that are read, decoded and cropped while the run goes on.

B batch, H height, W width, C channels. Step t of a run gets the same images in
the same crops, whatever was run before and on however many hosts: the order of
an epoch is a permutation drawn from (seed, epoch), and each crop is drawn from
(seed, number of the image in the run). Resuming at any step therefore costs
one permutation, and no image is read twice.
"""

from collections import deque
from collections.abc import Generator, Iterator
import ctypes
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from dnal_jax import errors
from dnal_jax.data import Data, batches, records, splits
from dnal_jax.data.batches import Batch
from dnal_jax.data.contents import Contents
from dnal_jax.data.pipeline import Pipeline, Rows
from dnal_jax.parallel import mesh

_ON_DEVICE = 2  # batches that wait on the device


class _Split(NamedTuple):
  """One of 'train', 'validation', 'test'."""

  records: records.TfRecords | records.Files
  ids: np.ndarray  # [N] int: the numbers of its records
  pipeline: Pipeline


class StreamedSource:
  """A `Source` of encoded images, read with tf.data.

  Each host reads its own rows of a batch. Images are copied to the device as
  uint8 and normalised there. Made by the constructor a source has no images,
  only shapes and programs; `open` opens the data set.
  """

  def __init__(self, data: Data, *, images: int, seed: int, batch_size: int):
    self._data, self._seed, self._batch_size = data, seed, batch_size
    self.images = images
    self.steps_per_epoch = images // batch_size
    self.steps_per_call = 1
    # Of each split, the records that cannot be decoded and are replaced by
    # their successors: as of the last batch that was handed out.
    self.broken: dict[str, list[int]] = {}
    self.contents = Contents((), {})
    self._splits: dict[str, _Split] = {}
    self._eval_batch_size = 0
    self._host = (0, 1)
    # The next step, and the batches from there on.
    self._ahead: tuple[int, Generator[Any, None, None]] | None = None

  @classmethod
  def open(
    cls,
    data: Data,
    *,
    seed: int,
    batch_size: int,
    eval_batch_size: int,
    host: tuple[int, int] = (0, 1),  # which host of how many
  ) -> 'StreamedSource':
    """Finds the images; they are read when their batches are needed.

    Raises:
      UserError: the data set is unknown, missing or damaged, or its images or
        the batch sizes do not fit.
    """
    _keep_freed_memory()
    sizes = {'batch_size': batch_size, 'eval_batch_size': eval_batch_size}
    for key, size in sizes.items():
      if size % host[1]:
        raise errors.UserError(
          f'{key} is {size}, which {host[1]} hosts cannot share evenly'
        )
    opened = records.open_splits(data)
    # Checked after the name: an unknown data set is streamed, too.
    if len(data.mean) != 3 or data.crop_pad:
      raise errors.UserError(
        f"'{data.title}' is streamed, in 3 channels and cropped by"
        f' data.crop_scale: data.mean has {len(data.mean)} and data.crop_pad is'
        f' {data.crop_pad}; give them 3 numbers and 0'
      )
    train, validation = splits.held_out(len(opened.train), data)
    source = cls(data, images=len(train), seed=seed, batch_size=batch_size)
    source.contents = opened.contents
    source._host, source._eval_batch_size = host, eval_batch_size
    for name, part, ids in (
      ('train', opened.train, train),
      ('validation', opened.train, np.sort(validation)),
      ('test', opened.test, np.arange(len(opened.test))),
    ):
      training = name == 'train'
      rows = (batch_size if training else eval_batch_size) // host[1]
      pipeline = Pipeline(
        data, part, training=training, seed=seed, batch_size=rows
      )
      source._splits[name] = _Split(part, ids, pipeline)
      source.broken[name] = []
    return source

  def inputs(self, step: int, n: int) -> Any:
    """(images [B, H, W, C] uint8, labels [B] int32), on the device, of `step`
    of the run; `n` must be 1.

    Batches are read ahead: a step that is not the one after the last costs a
    new start of the pipeline.
    """
    assert n == 1
    if self._ahead is None or self._ahead[0] != step:
      self.close()
      ahead = self._batches('train', self._train_rows, step)
    else:
      ahead = self._ahead[1]
    self._ahead = None  # the pipeline ends if it raises
    images, labels, _ = next(ahead)
    self._ahead = step + 1, ahead
    return images, labels

  def input_shapes(self) -> Any:
    """`inputs` as shapes, their rows shared by the devices of the mesh."""
    return mesh.batch_sharded_shapes(
      batches.image_and_label_shapes(self._batch_size, self._data)
    )

  def train_batch(self, inputs: Any, step: jax.Array) -> Batch:
    """The batch of a step; to be compiled into that step."""
    del step  # the inputs are those of one step
    images, labels = inputs
    pixels = batches.normalise(images, self._data)
    return Batch(pixels, labels, jnp.ones(len(labels)))

  def eval_inputs(self, split: str) -> Iterator[tuple[Any, int]]:
    """Yields (images [B, H, W, C] uint8, labels [B] int32, weights [B]
    float32), on the device, and 1 for each batch of a split. The last batch is
    filled up with weights of 0."""
    for inputs in self._batches(split, self._eval_rows(split), 0):
      yield inputs, 1

  def eval_batch(self, inputs: Any, index: jax.typing.ArrayLike) -> Batch:
    """The batch of its inputs; to be compiled into the evaluation."""
    del index  # always 0
    images, labels, weights = inputs
    return Batch(batches.normalise(images, self._data), labels, weights)

  def broken_names(self) -> list[str]:
    """Paths or places of the images that could not be decoded."""
    return [
      self._splits[split].records.name(number)
      for split, numbers in self.broken.items()
      for number in numbers
    ]

  def close(self) -> None:
    """Ends reading ahead; `inputs` starts it again."""
    if self._ahead is not None:
      self._ahead[1].close()
      self._ahead = None

  def _train_rows(self, step: int, broken: list[int]) -> Iterator[np.ndarray]:
    """`Rows` of training, without end."""
    ids, mine = self._split('train').ids, self._mine(self._batch_size)
    while True:
      epoch, first = divmod(step, self.steps_per_epoch)
      order = np.random.default_rng((self._seed, epoch)).permutation(ids)
      order = self._replaced(order, broken)
      for position in range(first, self.steps_per_epoch):
        numbers = step * self._batch_size + mine
        chosen = order[position * self._batch_size + mine]
        yield np.stack([numbers, chosen, np.ones_like(mine)], 1)
        step += 1

  def _eval_rows(self, split: str) -> Rows:
    """`Rows` of the evaluation on a split; broken images have weight 0."""
    ids, size = self._split(split).ids, self._eval_batch_size
    mine = self._mine(size)

    def rows(step: int, broken: list[int]) -> Iterator[np.ndarray]:
      kept = self._replaced(ids, broken)
      for start in range(step * size, len(ids), size):
        places = start + mine
        inside = np.minimum(places, len(ids) - 1)
        weights = (places < len(ids)) & (kept[inside] == ids[inside])
        yield np.stack([places, kept[inside], weights], 1)

    return rows

  def _split(self, name: str) -> _Split:
    if not self._splits:
      raise RuntimeError('this source was made without images')
    return self._splits[name]

  def _mine(self, batch_size: int) -> np.ndarray:
    """The rows of a batch that this host reads."""
    index, hosts = self._host
    share = batch_size // hosts
    return np.arange(index * share, (index + 1) * share)

  def _replaced(self, ids: np.ndarray, known: list[int]) -> np.ndarray:
    """`ids` with every broken record replaced by the next whole one."""
    broken = np.isin(ids, known)
    if not broken.any():
      return ids
    whole = np.sort(ids[~broken])
    if not len(whole):
      raise errors.UserError(f"no image of '{self._data.title}' can be decoded")
    ids = ids.copy()
    ids[broken] = whole[np.searchsorted(whole, ids[broken]) % len(whole)]
    return ids

  def _batches(
    self, split: str, rows: Rows, step: int
  ) -> Generator[Any, None, None]:
    """Batches on the device, some ahead of the one that is handed out."""
    ahead, pipeline = deque(), self._split(split).pipeline
    for batch in pipeline.batches(rows, step, self.broken[split]):
      ahead.append((mesh.put_batch_sharded(batch[:3]), batch.broken))
      if len(ahead) > _ON_DEVICE:
        on_device, self.broken[split] = ahead.popleft()
        yield on_device
    for on_device, broken in ahead:
      self.broken[split] = broken
      yield on_device


def _keep_freed_memory() -> None:
  """Makes glibc keep freed memory for the next image. Returning it to the
  system and asking again costs as much time as decoding does.

  `benchmarks/input_pipeline.py` runs at half the rate without this. (On TPU
  machines another allocator is usually preloaded, which does the same.)
  """
  try:
    mallopt = ctypes.CDLL(None).mallopt
  except (OSError, TypeError, AttributeError):
    return  # not glibc
  trim_threshold, top_pad, mmap_threshold = -1, -2, -3  # of <malloc.h>
  mallopt(mmap_threshold, 1 << 25)  # the largest value allowed
  mallopt(trim_threshold, (1 << 31) - 1)
  mallopt(top_pad, 1 << 26)
