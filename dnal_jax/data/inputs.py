"""What compiled train steps are given, and the batches they make of it.

N images in all, B batch, H height, W width, C channels. Nothing here holds an
image, so that a step can be compiled where there is no data; the sources that
hold them (`resident.py`, `streamed.py`) are these with images.
"""

from typing import Any, Protocol

import jax
import jax.numpy as jnp
import numpy as np

from dnal_jax.data import Data, batches
from dnal_jax.data.batches import Batch
from dnal_jax.parallel import mesh

# What a call may last where a step takes a millisecond; slower ones get fewer.
_STEPS_AT_ONCE = 128


class Inputs(Protocol):
  """What there is to know of a source to compile the steps of a run.

  Inputs are what travels to the device for one or several batches; what they
  are is known to the source only, which makes a batch of them inside the
  compiled step.
  """

  images: int  # to train on
  steps_per_epoch: int
  # How many steps of one epoch the first one's inputs serve, at most.
  steps_at_once: int

  def train_shapes(self) -> Any:
    """The inputs of a step as shapes, on the devices of the current mesh."""
    ...

  def train_batch(self, inputs: Any, step: jax.Array) -> Batch:
    """The batch of step `step` of the run; to be compiled."""
    ...


class ResidentInputs:
  """`Inputs` of a data set that lies on the device as a whole."""

  def __init__(self, data: Data, *, images: int, seed: int, batch_size: int):
    self._data, self._seed, self._batch_size = data, seed, batch_size
    self.images = images
    self.steps_per_epoch = images // batch_size
    self.steps_at_once = _STEPS_AT_ONCE

  def train_shapes(self) -> Any:
    """(images [N, H, W, C] uint8, labels [N] int32, order [N] int32)."""
    order = jax.ShapeDtypeStruct((self.images,), np.int32)
    return mesh.replicated_shapes((*_shapes(self.images, self._data), order))

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


class StreamedInputs:
  """`Inputs` of a data set whose batches come from the host."""

  def __init__(self, data: Data, *, images: int, seed: int, batch_size: int):
    self._data, self._seed, self._batch_size = data, seed, batch_size
    self.images = images
    self.steps_per_epoch = images // batch_size
    self.steps_at_once = 1

  def train_shapes(self) -> Any:
    """(images [B, H, W, C] uint8, labels [B] int32), rows shared out."""
    return mesh.batch_sharded_shapes(_shapes(self._batch_size, self._data))

  def train_batch(self, inputs: Any, step: jax.Array) -> Batch:
    """The batch of a step from its inputs, to be compiled into it."""
    del step  # the images are this step's already
    images, labels = inputs
    pixels = batches.normalise(images, self._data)
    return Batch(pixels, labels, jnp.ones(len(labels)))


def _shapes(images: int, data: Data) -> tuple[Any, Any]:
  shape = (images, data.image, data.image, len(data.mean))
  return (
    jax.ShapeDtypeStruct(shape, np.uint8),
    jax.ShapeDtypeStruct((images,), np.int32),
  )
