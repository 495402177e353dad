"""Data sets that fit in memory, as uint8 arrays, in three disjoint splits.

N images, H height, W width, C channels. What tensorflow-datasets has read is
cached as one .npz file, so that the next start does not import TensorFlow.
"""

from collections.abc import Mapping
import pathlib
from typing import Any, NamedTuple
import zlib

import numpy as np

from dnal_jax import errors
from dnal_jax.data import Data, cache, record_files, splits, tfds_sets
from dnal_jax.data.contents import Contents, Part
from dnal_jax.data.preprocessing import pad
from dnal_jax.parallel import streams

# In the cache (`cache.read`).
_ARRAYS = {
  'train_images': ('uint8', 'nhwc'),
  'train_labels': ('int64', 'n'),
  'test_images': ('uint8', 'mhwc'),
  'test_labels': ('int64', 'm'),
  'class_names': ('str', 'k'),
}


class Split(NamedTuple):
  """Images and labels, in the order of their numbers."""

  images: np.ndarray  # [N, H, W, C] uint8
  labels: np.ndarray  # [N] int32


class Splits(NamedTuple):
  """Training; validation, to make choices with; test, used once at the end."""

  train: Split
  validation: Split
  test: Split
  contents: Contents  # with digests of the pixels and labels


def load(data: Data) -> Splits:
  """Reads a data set; images are padded with zeros to `data.image` squared,
  and a gray channel is repeated for each channel of `data.mean`.

  Raises:
    UserError: the data set is missing, or its sizes do not fit.
  """
  raw = _digits() if data.name == 'digits' else _tfds(data)
  train, test = (
    Split(
      _fit(raw[f'{split}_images'], data),
      raw[f'{split}_labels'].astype(np.int32),
    )
    for split in ('train', 'test')
  )
  found = int(max(train.labels.max(), test.labels.max())) + 1
  splits.check_classes(found, data)
  chosen, held_out = splits.held_out(len(train.labels), data)
  return Splits(
    Split(train.images[chosen], train.labels[chosen]),
    Split(train.images[held_out], train.labels[held_out]),
    test,
    _contents(raw),
  )


def _contents(raw: Mapping[str, np.ndarray]) -> Contents:
  parts = {}
  for split in ('train', 'test'):
    images, labels = raw[f'{split}_images'], raw[f'{split}_labels']
    checksum = zlib.crc32(images.tobytes())
    checksum = zlib.crc32(labels.astype(np.int64).tobytes(), checksum)
    parts[split] = Part(len(labels), f'{checksum:08x}')
  return Contents(tuple(map(str, raw['class_names'])), parts)


def _digits() -> dict[str, np.ndarray]:
  """scikit-learn's 1,797 digits of 8x8 pixels. The test split is a fifth,
  stratified by class."""
  try:
    from sklearn import datasets, model_selection
  except ImportError as error:
    raise errors.UserError(
      "data set 'digits' is part of scikit-learn, which does not import here"
      f' ({error}); {errors.INSTALL_TRAIN}'
    ) from error

  bunch: Any = datasets.load_digits()
  images = np.round(bunch['images'] * (255 / 16)).astype(np.uint8)[..., None]
  labels = bunch['target']
  names = 'train_images', 'test_images', 'train_labels', 'test_labels'
  parts: Any = model_selection.train_test_split(
    images, labels, test_size=0.2, stratify=labels, random_state=0
  )
  arrays = dict(zip(names, parts, strict=True))
  return {**arrays, 'class_names': bunch['target_names'].astype(str)}


def _tfds(data: Data) -> dict[str, np.ndarray]:
  """Train and test split of a tensorflow-datasets data set, from the cache if
  they are there."""
  root = pathlib.Path(tfds_sets.root(data.name, data.dir))
  arrays = _read_cache(root, data.name)
  if arrays is None:
    arrays = _read_tfds(data)
    cache.write(_cache_file(root, data.name), arrays)
  return arrays


def _cache_file(root: pathlib.Path, name: str) -> pathlib.Path | None:
  """The cache of a prepared data set; None if that is not prepared, or nothing
  is cached."""
  prepared = sorted(root.glob(f'{name}/*/dataset_info.json'))
  if not prepared:
    return None
  return cache.path(f'{name}-{tfds_sets.digest(prepared[-1])}.npz')


def _read_cache(root: pathlib.Path, name: str) -> dict[str, np.ndarray] | None:
  return cache.read(_cache_file(root, name), _ARRAYS)


def _read_tfds(data: Data) -> dict[str, np.ndarray]:
  builder = tfds_sets.prepared(data.name, data.dir)
  streams.quiet_tensorflow()
  import tensorflow_datasets as tfds

  arrays = {'class_names': np.array(builder.info.features['label'].names)}
  for split in ('train', 'test'):
    try:
      whole = tfds.as_numpy(builder.as_dataset(split=split, batch_size=-1))
    except Exception as error:  # of TensorFlow, of tfds, of what files describe
      record_files.raise_damage(builder, split, error)
    arrays[f'{split}_images'] = np.asarray(whole['image'])
    arrays[f'{split}_labels'] = np.asarray(whole['label'])
  return arrays


def _fit(images: np.ndarray, data: Data) -> np.ndarray:
  """Pads images to `data.image` squared; repeats a single gray channel."""
  image, channels = data.image, len(data.mean)
  height, width, have = images.shape[1:]
  if max(height, width) > image:
    raise errors.UserError(
      f"data.image is {image}, but '{data.name}' has images of"
      f' {height}x{width} pixels; set it to {max(height, width)} or more'
    )
  if have not in (1, channels):
    raise errors.UserError(
      f"data.mean has {channels} channels, but '{data.name}' has {have}"
    )
  images = pad(images, (image, image))
  return np.repeat(images, channels, -1) if have != channels else images
