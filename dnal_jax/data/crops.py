"""Crops of one size from encoded images, as TensorFlow graph functions.

H height, W width, in pixels; crops are [size, size, 3] uint8 RGB. Of a JPEG
only the window of the crop is decoded, of other formats the whole image. Gray
becomes three equal channels, CMYK is converted, an alpha channel is dropped;
small images are enlarged. The crops are those of torchvision, with which the
published networks were trained. With `upright`, a JPEG is first turned as its
Exif metadata says.
"""

import functools
import math
from typing import Any

import numpy as np

from dnal_jax import errors
from dnal_jax.data import exif
from dnal_jax.parallel import streams

_TRIES = 10
_ASPECT = (3 / 4, 4 / 3)
DRAWS = 4 * _TRIES + 1  # uniform numbers that a random crop and flip use


@functools.cache
def import_tensorflow() -> Any:
  """Imports TensorFlow without its log output and hides accelerators from it:
  they belong to JAX.

  Raises:
    UserError: it cannot be imported.
  """
  streams.quiet_tensorflow()
  try:
    import tensorflow as tf
  except ImportError as error:
    raise errors.UserError(
      'images are read from files by TensorFlow, which does not import here'
      f' ({error}); {errors.INSTALL_TRAIN}'
    ) from error
  for kind in ('GPU', 'TPU'):
    tf.config.set_visible_devices([], kind)
  return tf


def random_crop(
  encoded,  # string
  draws,  # [DRAWS] float32 in [0, 1)
  *,
  size: int,
  scale: tuple[float, ...],
  flip: bool,
  upright: bool,
):  # [size, size, 3] uint8
  """A crop of random area and aspect, bilinearly resized, flipped at random.

  Deviation: no antialiasing, which would double the time. PIL, and therefore
  torchvision, averages over neighbouring pixels when it makes a crop smaller.
  """
  tf = import_tensorflow()
  window = functools.partial(random_window, draws=draws[1:], scale=scale)
  pixels, _, _ = _decode(encoded, window, upright)
  image = _to_uint8(tf.image.resize(pixels, (size, size)), size)
  if flip:
    flipped = draws[0] < 0.5
    image = tf.cond(flipped, lambda: tf.reverse(image, [1]), lambda: image)
  return image


def random_window(
  shape,  # [2] int32: H, W
  draws,  # [40] float32 in [0, 1)
  scale: tuple[float, ...],
):  # [4] int32: top, left, height, width
  """The first of ten random windows that fits into the image.

  Its share of the area is uniform in `scale`, its aspect log-uniform in 3/4 to
  4/3, its place uniform. If none fits: the largest window in the centre whose
  aspect is allowed (arXiv 1409.4842, as in torchvision).
  """
  tf = import_tensorflow()
  shape = tf.cast(shape, tf.float32)
  area, aspect, *places = tf.unstack(tf.reshape(draws, (4, _TRIES)))
  low, high = (math.log(a) for a in _ASPECT)
  area = (scale[0] + area * (scale[1] - scale[0])) * shape[0] * shape[1]
  aspect = tf.exp(low + aspect * (high - low))
  sides = tf.stack([tf.sqrt(area / aspect), tf.sqrt(area * aspect)], -1)
  sides = tf.round(sides)  # [tries, 2]
  corners = tf.floor(tf.stack(places, -1) * (shape - sides + 1))
  centred = tf.minimum(
    shape, tf.round([shape[1] / _ASPECT[0], shape[0] * _ASPECT[1]])
  )
  sides = tf.concat([sides, [centred]], 0)
  corners = tf.concat([corners, [(shape - centred) // 2]], 0)
  fits = tf.reduce_all((sides >= 1) & (sides <= shape), -1)
  first = tf.argmax(tf.cast(fits, tf.int32))  # the centred one always fits
  return tf.cast(tf.concat([corners[first], sides[first]], 0), tf.int32)


def centre_crop(
  encoded,  # string
  *,
  size: int,
  short_side: int,
  upright: bool,
):  # [size, size, 3] uint8
  """The centre of the image resized to `short_side`, bilinear, antialiased.

  As in PIL and torchvision, but only the crop of the resized image is
  computed, from the pixels that it depends on.
  """
  tf = import_tensorflow()

  def place(shape):
    """([2] float32 factor of the resizing, [2] float32 corner of the crop in
    the resized image)."""
    resized = short_side * shape // tf.reduce_min(shape)
    corner = tf.round(tf.cast(resized - size, tf.float32) / 2)
    return tf.cast(resized / shape, tf.float32), corner

  def window(shape):
    factor, corner = place(shape)
    reach = tf.maximum(1.0, 1 / factor) + 1  # radius of the resizing kernel
    first = tf.maximum(tf.floor(corner / factor - reach), 0)
    last = tf.math.ceil((corner + size) / factor + reach)
    last = tf.minimum(last, tf.cast(shape, tf.float32))
    return tf.cast(tf.concat([first, last - first], 0), tf.int32)

  pixels, shape, box = _decode(encoded, window, upright)
  factor, corner = place(shape)
  image = tf.raw_ops.ScaleAndTranslate(
    images=tf.cast(pixels, tf.float32)[None],
    size=(size, size),
    scale=factor,
    translation=tf.cast(box[:2], tf.float32) * factor - corner,
    kernel_type='triangle',
    antialias=True,
  )
  return _to_uint8(image[0], size)


def _decode(encoded, window, upright):
  """([h, w, 3] uint8 pixels of a box, [2] int32 shape of the image, [4] int32
  box); `window` chooses the box for the shape."""
  tf = import_tensorflow()

  def jpeg():
    stored = tf.io.extract_jpeg_shape(encoded)[:2]
    turn = _Turn(encoded) if upright else None
    shape = turn.shape(stored) if turn else stored
    box = window(shape)
    pixels = tf.image.decode_and_crop_jpeg(
      encoded,
      turn.stored_box(box, shape) if turn else box,
      channels=3,
      dct_method='INTEGER_ACCURATE',
    )
    return turn.pixels(pixels) if turn else pixels, shape, box

  def other():
    pixels = tf.io.decode_image(encoded, 3, expand_animations=False)
    shape = tf.shape(pixels)[:2]
    box = window(shape)
    top, left, height, width = tf.unstack(box)
    return pixels[top : top + height, left : left + width], shape, box

  pixels, shape, box = tf.cond(tf.io.is_jpeg(encoded), jpeg, other)
  pixels.set_shape((None, None, 3))
  return pixels, shape, box


class _Turn:
  """How a JPEG is turned from its stored to its upright orientation: it is
  transposed, then flipped."""

  def __init__(self, encoded):
    tf = import_tensorflow()
    head = tf.strings.substr(encoded, 0, exif.HEAD)
    value = tf.numpy_function(_orientation, [head], tf.int32)
    self._transposed, self._vertically, self._horizontally = (
      tf.reduce_any(tf.equal(value, values))
      for values in (
        exif.TRANSPOSED,
        exif.FLIPPED_VERTICALLY,
        exif.FLIPPED_HORIZONTALLY,
      )
    )

  def shape(self, stored):
    """[2] int32 of the upright image."""
    tf = import_tensorflow()
    return tf.where(self._transposed, tf.reverse(stored, [0]), stored)

  def stored_box(self, box, shape):
    """The box of the stored image that becomes `box` of the upright one, which
    has that shape."""
    tf = import_tensorflow()
    top, left, height, width = tf.unstack(box)
    top = tf.where(self._vertically, shape[0] - top - height, top)
    left = tf.where(self._horizontally, shape[1] - left - width, left)
    return tf.where(
      self._transposed,
      tf.stack([left, top, width, height]),
      tf.stack([top, left, height, width]),
    )

  def pixels(self, stored):
    """[h, w, 3], upright."""
    tf = import_tensorflow()
    turned = tf.cond(
      self._transposed,
      lambda: tf.transpose(stored, (1, 0, 2)),
      lambda: stored,
    )
    turned = tf.cond(
      self._vertically, lambda: tf.reverse(turned, [0]), lambda: turned
    )
    return tf.cond(
      self._horizontally, lambda: tf.reverse(turned, [1]), lambda: turned
    )


def _orientation(head):
  # Eagerly it is an array of bytes, in a graph it is bytes.
  return np.int32(exif.orientation(np.asarray(head, object).item()))


def _to_uint8(image, size: int):
  """Rounds values between 0 and 255; tf.round and clipping would take as long
  as decoding."""
  image = import_tensorflow().cast(image + 0.5, 'uint8')
  image.set_shape((size, size, 3))
  return image
