"""What a run needs of a data set, wherever its images lie."""

from collections.abc import Generator, Iterator
from typing import Any, Protocol

import jax

from dnal_jax import errors
from dnal_jax.data import Data, memory, records, splits
from dnal_jax.data.batches import Batch
from dnal_jax.data.inputs import Inputs, ResidentInputs, StreamedInputs
from dnal_jax.data.resident import Resident
from dnal_jax.data.streamed import Streamed


class Source(Inputs, Protocol):
  """Batches, each a function of the seed and the number of the step alone."""

  broken: dict[str, list[int]]  # records without which the run goes on

  def train_inputs(self, first_step: int) -> Generator[Any, None, None]:
    """Inputs of every step of the run from `first_step` on, without end."""
    ...

  def eval_inputs(self, split: str) -> Iterator[tuple[Any, int]]:
    """Inputs of all batches of 'validation' or 'test', and how many each
    serve."""
    ...

  def eval_batch(self, inputs: Any, index: jax.typing.ArrayLike) -> Batch:
    """Batch `index` of those that the inputs serve; to be compiled. Weights
    of 0 mark padding."""
    ...

  def broken_names(self) -> list[str]:
    """The images that could not be decoded, for people."""
    ...


def streams(data: Data) -> bool:
  """Whether images are streamed; else they lie on the device."""
  return data.folder is not None or data.name not in memory.NAMES


def open_source(
  data: Data, *, seed: int, batch_size: int, eval_batch_size: int
) -> Source:
  """Opens a data set, of which every host reads its share.

  Raises:
    UserError: it is unknown, missing, damaged or too small.
  """
  sizes = {'batch_size': batch_size, 'eval_batch_size': eval_batch_size}
  if streams(data):
    host = jax.process_index(), jax.process_count()
    source = Streamed(data, seed=seed, **sizes, host=host)
  else:
    source = Resident(data, seed=seed, **sizes)
  _check_batch(batch_size, source.images)
  return source


def inputs_of(data: Data, *, seed: int, batch_size: int) -> Inputs:
  """What `open_source` would give to compiled steps. Reads no image.

  Raises:
    UserError: the data set is too small, or its size cannot be told.
  """
  if data.folder is not None:
    whole = len(records.open_splits(data).train)
  else:
    whole = splits.images(data)
  images = len(splits.held_out(whole, data)[0])
  _check_batch(batch_size, images)
  kind = StreamedInputs if streams(data) else ResidentInputs
  return kind(data, images=images, seed=seed, batch_size=batch_size)


def _check_batch(batch_size: int, images: int) -> None:
  if batch_size > images:
    raise errors.UserError(
      f'batch_size is {batch_size}, but there are {images} images to train on;'
      ' make it smaller'
    )
