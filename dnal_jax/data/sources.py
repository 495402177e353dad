"""Where the batches of a run come from."""

from collections.abc import Iterator
from typing import Any, Protocol

import jax

from dnal_jax import errors, paths
from dnal_jax.data import Data, folder, is_streamed, splits
from dnal_jax.data.batches import Batch
from dnal_jax.data.contents import Contents
from dnal_jax.data.resident import ResidentSource
from dnal_jax.data.streamed import StreamedSource
from dnal_jax.parallel import processes


class Source(Protocol):
  """Batches, each a function of the seed and the number of the step alone.

  Inputs are the arrays that a call of the compiled steps takes. What they are
  is known to the source only, which makes a batch of them inside each step.
  """

  images: int  # to train on
  steps_per_epoch: int
  steps_per_call: int  # steps of one epoch that the same inputs serve, at most
  # {split: numbers of the images that cannot be decoded and are skipped}
  broken: dict[str, list[int]]
  contents: Contents  # empty if the source was made without images

  def inputs(self, step: int, n: int) -> Any:
    """The inputs, on the device, of steps `step` to `step + n - 1` of the run.

    The steps lie in one epoch, and `n` is at most `steps_per_call`.
    """
    ...

  def input_shapes(self) -> Any:
    """`inputs` as shapes, on the devices of the current mesh."""
    ...

  def train_batch(self, inputs: Any, step: jax.Array) -> Batch:
    """The batch of `step` of the run; to be compiled into that step."""
    ...

  def eval_inputs(self, split: str) -> Iterator[tuple[Any, int]]:
    """Yields inputs of 'validation' or 'test', and how many batches they have,
    until all images of the split have been in one batch."""
    ...

  def eval_batch(self, inputs: Any, index: jax.typing.ArrayLike) -> Batch:
    """Batch `index` of the inputs; to be compiled into the evaluation. Padding
    has weight 0."""
    ...

  def broken_names(self) -> list[str]:
    """Names for people of the images that could not be decoded."""
    ...

  def close(self) -> None:
    """Ends reading ahead, if any; may be called again."""
    ...


def open_source(
  data: Data, *, seed: int, batch_size: int, eval_batch_size: int
) -> Source:
  """Opens a data set, of which every host reads its share.

  Raises:
    UserError: it is unknown, missing, damaged or too small.
  """
  sizes = {'batch_size': batch_size, 'eval_batch_size': eval_batch_size}
  if is_streamed(data.name, data.folder):
    host = jax.process_index(), jax.process_count()
    source = StreamedSource.open(data, seed=seed, **sizes, host=host)
  else:
    source = ResidentSource.open(data, seed=seed, **sizes)
  _check_batch(batch_size, source.images)
  _check_same_everywhere(data, source.contents)
  return source


def describe_source(data: Data, *, seed: int, batch_size: int) -> Source:
  """What `open_source` returns, but without images, to compile steps where
  there is no data: only `images`, `steps_per_epoch`, `steps_per_call`,
  `input_shapes` and `train_batch` work.

  Raises:
    UserError: the data set is too small, or its size is not known.
  """
  if data.folder is not None:
    root = paths.local('data.folder', data.folder)
    whole = len(folder.list_images(root).train.paths)
  else:
    whole = splits.images(data)
  images = len(splits.held_out(whole, data)[0])
  _check_batch(batch_size, images)
  streamed = is_streamed(data.name, data.folder)
  kind = StreamedSource if streamed else ResidentSource
  return kind(data, images=images, seed=seed, batch_size=batch_size)


def _check_batch(batch_size: int, images: int) -> None:
  if batch_size > images:
    raise errors.UserError(
      f'batch_size is {batch_size}, but there are {images} images to train on;'
      ' make it smaller'
    )


def _check_same_everywhere(data: Data, contents: Contents) -> None:
  """Checks that all processes read the same data set."""
  first, *others = processes.allgather_json(contents.to_json())
  first = Contents.from_json(first)
  for number, other in enumerate(others, 1):
    difference = first.first_difference(Contents.from_json(other))
    if difference is not None:
      raise errors.UserError(
        f"'{data.title}' on process {number} is not that on process 0: there,"
        f' {difference}; give all processes the same data'
      )
