"""How the images of an evaluation are made out of images of any size.

H height, W width, C channels; pixels are uint8. numpy only: the network of a
run is used where TensorFlow, with which a run reads photographs, need not be
installed.
"""

from collections.abc import Mapping
import dataclasses
import reprlib
from typing import Any, ClassVar

import numpy as np

from dnal_jax import limits
from dnal_jax.data import Data, is_streamed


@dataclasses.dataclass(frozen=True)
class Preprocessing:
  """The evaluation of a run as a function of one image."""

  image_shape: tuple[int, int, int]  # (height, width, channels) of the network
  mean: tuple[float, ...]  # per channel, of pixels in [0, 1]
  std: tuple[float, ...]
  # Pixels of the shorter side before the centre crop; None: images are padded
  # with zeros instead, as those of small data sets are.
  short_side: int | None

  KEYS: ClassVar = ('mean', 'std', 'short_side')  # of `to_json`

  @classmethod
  def of(cls, data: Data) -> 'Preprocessing':
    """That of the evaluation of a run on `data`."""
    streamed = is_streamed(data.name, data.folder)
    return cls(
      (data.image, data.image, len(data.mean)),
      data.mean,
      data.std,
      data.short_side if streamed else None,
    )

  def to_json(self) -> dict[str, Any]:
    """The value that `from_json` reads; `image_shape` is not in it."""
    return {key: getattr(self, key) for key in self.KEYS}

  @classmethod
  def from_json(
    cls, value: Mapping[str, Any], image_shape: tuple[int, int, int]
  ) -> 'Preprocessing':
    """What `to_json` wrote, which may be untrusted, for such images.

    Raises:
      ValueError: a value is not valid; names its key.
    """
    most = limits.MEAN
    for key, above in (('mean', -most), ('std', 0)):
      numbers = value[key]
      if (
        type(numbers) is not list
        or len(numbers) != image_shape[2]
        or not all(type(n) in (int, float) for n in numbers)
        or not all(above < n <= most for n in numbers)
      ):
        raise ValueError(
          f'{key} is {reprlib.repr(numbers)}; it must list {image_shape[2]}'
          f' numbers above {above:,}, {most:,} at most'
        )
    short, least = value['short_side'], max(image_shape[:2])
    if short is not None and (
      type(short) is not int or not least <= short <= limits.SHORT_SIDE
    ):
      raise ValueError(
        f'short_side is {reprlib.repr(short)}; it must be null, or an integer'
        f' from {least:,}, the side of the crop, to {limits.SHORT_SIDE:,}'
      )
    mean, std = (tuple(map(float, value[key])) for key in ('mean', 'std'))
    return cls(image_shape, mean, std, short)

  def __call__(self, image: np.ndarray) -> np.ndarray:
    """[H, W, C] uint8 -> uint8 of `image_shape`; not yet normalised.

    Where the run pads, an image that is larger than it has (the run had none)
    is resized to the smallest size that fills `image_shape`, and cropped.

    Raises:
      ValueError: it has other channels; a single one stands for any number.
    """
    height, width, channels = self.image_shape
    if image.shape[2] not in (1, channels):
      raise ValueError(
        f'it has {image.shape[2]} channels, and the network reads {channels};'
        ' the channels are the last of [H, W, C] or [B, H, W, C], and a gray'
        ' image is given as image[..., None]'
      )
    if image.shape[2] != channels:
      image = np.repeat(image, channels, 2)
    if self.short_side is not None:
      return centre_crop(image, (height, width), self.short_side)
    if image.shape[0] > height or image.shape[1] > width:
      return centre_crop(image, (height, width), max(height, width))
    return pad(image[None], (height, width))[0]


def pad(images: np.ndarray, size: tuple[int, int]) -> np.ndarray:
  """[N, H, W, C] -> [N, *size, C]: zeros around images that are not larger."""
  margins = []
  for to, length in zip(size, images.shape[1:3], strict=True):
    before = (to - length) // 2
    margins.append((before, to - length - before))
  return np.pad(images, ((0, 0), *margins, (0, 0)))


def centre_crop(
  image: np.ndarray,  # [H, W, C] uint8
  size: tuple[int, int],
  short_side: int,
) -> np.ndarray:  # [*size, C] uint8
  """The centre of the image resized to `short_side`, bilinear, antialiased.

  The crop of `crops.centre_crop`, which resizes by TensorFlow's op
  ScaleAndTranslate, in the same order and, so that halves are rounded alike, in
  float32 too.
  """
  (rows, row_weights), (columns, column_weights) = (
    _taps(length, to, short_side * length // min(image.shape[:2]))
    for length, to in zip(image.shape[:2], size, strict=True)
  )
  left = columns.min()
  image = image[:, left : columns.max() + 1]
  image = _weighted_sums(image, 0, rows, row_weights)
  image = _weighted_sums(image, 1, columns - left, column_weights)
  return (image + np.float32(0.5)).astype(np.uint8)


def _taps(
  length: int,  # of the image along an axis
  size: int,  # of the crop
  resized: int,  # of the whole image after resizing
) -> tuple[np.ndarray, np.ndarray]:  # [size, T] int, [size, T] float32
  """The T pixels that each pixel of the crop is a mean of, and their weights,
  which fall linearly from its place in the image to zero."""
  f32 = np.float32
  factor = f32(resized / length)
  corner = np.round(f32(resized - size) / f32(2))  # of the crop
  radius = max(f32(1), f32(1) / factor)
  # The part of the image that the crop depends on, where places are counted
  # from `first`.
  first = max(np.floor(corner / factor - (radius + 1)), f32(0))
  last = np.ceil((corner + f32(size)) / factor + (radius + 1))
  last = min(last, f32(length)) - first - 1
  inverse = f32(1) / factor
  places = (np.arange(size, dtype=f32) + f32(0.5)) * inverse
  places += -inverse * (first * factor - corner)
  start = np.clip(np.ceil(places - radius - f32(0.5)), 0, last)
  stop = np.clip(np.floor(places + radius - f32(0.5)), 0, last) + 1
  index = start[:, None] + np.arange((stop - start).max(), dtype=f32)
  distance = abs(index + f32(0.5) - places[:, None]) * (f32(1) / radius)
  weights = np.where(index < stop[:, None], np.maximum(1 - distance, 0), 0)
  total = np.add.accumulate(weights, 1)[:, -1:]  # one after the other, too
  weights = weights * (1 / np.maximum(total, np.finfo(f32).tiny))
  return (np.minimum(index, last) + first).astype(int), weights


def _weighted_sums(
  image: np.ndarray,  # [H, W, C]
  axis: int,
  taps: np.ndarray,  # [size, T] int
  weights: np.ndarray,  # [size, T] float32
) -> np.ndarray:  # [H, W, C] float32, with `size` on the axis
  sums = np.zeros((), np.float32)
  for tap, weight in zip(taps.T, weights.T, strict=True):
    weight = weight.reshape(-1, *(1,) * (2 - axis))
    sums = sums + image.take(tap, axis, mode='clip') * weight
  return sums
