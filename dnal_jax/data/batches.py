"""Batches of arrays on the device, a pure function of (seed, step).

N images in all, B batch, H height, W width, C channels. There is no state, so
a resumed run gets the same batches.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from dnal_jax.data import Data
from dnal_jax.data.preprocessing import Preprocessing


class Batch(NamedTuple):
  """Images and labels; in evaluation, padding has weight 0."""

  image: jax.Array  # [B, H, W, C] floating point, normalised
  label: jax.Array  # [B] int32
  weight: jax.Array  # [B] float32


def image_and_label_shapes(images: int, data: Data) -> tuple[Any, Any]:
  """([N, H, W, C] uint8, [N] int32) of so many images, as shapes."""
  shape = (images, data.image, data.image, len(data.mean))
  return (
    jax.ShapeDtypeStruct(shape, np.uint8),
    jax.ShapeDtypeStruct((images,), np.int32),
  )


def normalise(images: jax.Array, data: Data | Preprocessing) -> jax.Array:
  """[B, H, W, C] uint8 -> float32: (pixels / 255 - mean) / std."""
  pixels = images.astype(jnp.float32) / 255
  return (pixels - jnp.array(data.mean)) / jnp.array(data.std)


def epoch_order(seed: int, epoch: jax.Array, images: int) -> jax.Array:
  """[N] int32: a permutation of the images, different in each epoch."""
  key = _key(seed, 'order', epoch)
  return jax.random.permutation(key, images).astype(jnp.int32)


def train_batch(
  images: jax.Array,  # [N, H, W, C] uint8
  labels: jax.Array,  # [N] int32
  order: jax.Array,  # [N] int32
  step: jax.Array,  # of the run; seeds the augmentation
  position: jax.Array,  # of the batch within its epoch
  *,
  seed: int,
  batch_size: int,
  data: Data,
) -> Batch:
  """Batch number `position` in `order`, randomly cropped and flipped."""
  start = position * batch_size
  index = jax.lax.dynamic_slice_in_dim(order, start, batch_size)
  chosen = images[index]
  key = _key(seed, 'augmentation', step)
  crop_key, flip_key = jax.random.split(key)
  if data.crop_pad:
    chosen = _random_crop(crop_key, chosen, data.crop_pad)
  if data.flip:
    flipped = jax.random.bernoulli(flip_key, shape=(batch_size, 1, 1, 1))
    chosen = jnp.where(flipped, chosen[:, :, ::-1], chosen)
  return Batch(normalise(chosen, data), labels[index], jnp.ones(batch_size))


def eval_batch(
  images: jax.Array,  # [N, H, W, C] uint8
  labels: jax.Array,  # [N] int32
  start: jax.typing.ArrayLike,
  *,
  batch_size: int,
  data: Data,
) -> Batch:
  """Images start, start + 1, ...; weights are 0 past the last image."""
  index = jnp.asarray(start) + jnp.arange(batch_size)
  weight = (index < len(labels)).astype(jnp.float32)
  index = jnp.minimum(index, len(labels) - 1)
  return Batch(normalise(images[index], data), labels[index], weight)


def _key(seed, purpose, number):
  """A key that no other purpose uses; initialisation uses key(seed) itself."""
  purpose = 1 + ('order', 'augmentation').index(purpose)
  key = jax.random.fold_in(jax.random.key(seed), purpose)
  return jax.random.fold_in(key, number)


def _random_crop(key, images, pad):
  """Shifts each image by up to `pad` pixels per axis and fills with zeros."""
  batch, height, width, channels = images.shape
  padded = jnp.pad(images, ((0, 0), (pad, pad), (pad, pad), (0, 0)))
  corners = jax.random.randint(key, (batch, 2), 0, 2 * pad + 1)

  def crop(image, corner):
    start = (corner[0], corner[1], 0)
    return jax.lax.dynamic_slice(image, start, (height, width, channels))

  return jax.vmap(crop)(padded, corners)
