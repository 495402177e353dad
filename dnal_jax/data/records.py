"""The encoded images of a data set, each of which can be read by its number.

N images. Any image costs as much to read as the next one, so an epoch can have
any order and a run can resume anywhere. TFRecord files have no index: one is
made from the headers of their records, without reading the images, and cached
(two int64 an image).
"""

from concurrent import futures
from typing import Any, NamedTuple

import numpy as np

from dnal_jax import errors, paths
from dnal_jax.data import Data, cache, splits, tfds_sets
from dnal_jax.data.crops import import_tensorflow

# A TFRecord: its length (8 bytes, little-endian), the checksum of the length
# (4), the data, and the checksum of the data (4).
_HEADER, _FRAME = 12, 16


class TfRecords:
  """The examples of one split of a prepared tensorflow-datasets data set."""

  def __init__(self, features: Any, files: list[str], table: np.ndarray):
    self._features = features
    self._files = files
    self._table = table  # [N, 2] int64: number of the file, offset in bytes

  def __len__(self) -> int:
    return len(self._table)

  def read(self, number) -> tuple[Any, Any]:
    """(encoded image, label) of image `number`, scalar tensors of a graph."""
    tf = import_tensorflow()
    import tensorflow_datasets as tfds

    place = tf.gather(self._table, number)
    # No buffer: it would read the following records, which are not wanted.
    file = tf.raw_ops.TFRecordDatasetV2(
      filenames=tf.gather(self._files, place[0])[None],
      compression_type='',
      buffer_size=0,
      byte_offsets=place[1:],
    )
    spec = {'output_types': [tf.string], 'output_shapes': [[]]}
    one = tf.raw_ops.TakeDataset(input_dataset=file, count=1, **spec)
    (record,) = tf.raw_ops.DatasetToSingleElement(dataset=one, **spec)
    example = self._features.deserialize_example(
      record, decoders={'image': tfds.decode.SkipDecoding()}
    )
    return example['image'], example['label']

  def name(self, number: int) -> str:
    """The path of an image."""
    file, offset = self._table[number]
    return f'{self._files[file]} at byte {offset}'


class Files:
  """Image files with labels."""

  def __init__(self, paths: list[str], labels: list[int]):
    self._paths = paths
    self._labels = np.array(labels, np.int64)

  def __len__(self) -> int:
    return len(self._paths)

  def read(self, number) -> tuple[Any, Any]:
    """(encoded image, label) of image `number`, scalar tensors of a graph."""
    tf = import_tensorflow()
    path = tf.gather(self._paths, number)
    return tf.io.read_file(path), tf.gather(self._labels, number)

  def name(self, number: int) -> str:
    """The path of an image."""
    return self._paths[number]


class Opened(NamedTuple):
  """The training split, of which a part is for validation; the test split."""

  train: TfRecords | Files
  test: TfRecords | Files


def open_splits(data: Data) -> Opened:
  """Opens the two splits of a data set whose images are streamed.

  Raises:
    UserError: it is missing or damaged, or it has not `data.classes` classes.
  """
  return _folder(data) if data.folder else _prepared(data)


def _prepared(data: Data) -> Opened:
  builder = tfds_sets.prepared(data.name, data.dir)
  info = builder.info
  file_format = getattr(info.file_format, 'value', info.file_format)
  if file_format != 'tfrecord':
    raise errors.UserError(
      f"'{builder.data_path}' holds {file_format} files; only tfrecord files,"
      ' the default of tensorflow-datasets, are read'
    )
  if {'image', 'label'} - set(info.features) or not hasattr(
    info.features['label'], 'num_classes'
  ):
    raise errors.UserError(
      f"data set '{data.name}' has the features {', '.join(info.features)};"
      ' an image and its label (a class) are needed'
    )
  splits.check_classes(info.features['label'].num_classes, data)
  opened = []
  for split in ('train', data.test_split):
    if split not in info.splits:
      raise errors.UserError(
        f"'{builder.data_path}' has no split '{split}', only"
        f' {", ".join(info.splits)}; was one of its archives missing when it'
        ' was prepared? Delete it and prepare it again'
      )
    paths = info.splits[split].filepaths
    table = _table(builder, split, paths, info.splits[split].num_examples)
    opened.append(TfRecords(info.features, [str(p) for p in paths], table))
  return Opened(*opened)


def _table(builder: Any, split: str, paths: Any, images: int) -> np.ndarray:
  """[images, 2] int64: file and offset of every record of a split."""
  sizes = np.array([path.stat().length for path in paths], np.int64)
  digest = tfds_sets.digest(builder.data_path / 'dataset_info.json')
  file = cache.path(f'{builder.name}-{split}-{digest}-records.npz')
  known = cache.read(file, {'sizes', 'table'})
  if known is not None and np.array_equal(known['sizes'], sizes):
    return known['table']
  with futures.ThreadPoolExecutor(16) as pool:
    offsets = list(pool.map(_offsets, paths, sizes))
  numbers = np.repeat(np.arange(len(paths)), [len(o) for o in offsets])
  table = np.stack([numbers, np.concatenate(offsets)], 1)
  if len(table) != images:
    raise errors.UserError(
      f"'{builder.data_path}' should have {images} records in split '{split}'"
      f' and has {len(table)}; prepare it again'
    )
  cache.write(file, {'sizes': sizes, 'table': table})
  return table


def _offsets(path: Any, size: int) -> np.ndarray:
  """Offsets of the records in a TFRecord file, in bytes."""
  offsets, at = [], 0
  with path.open('rb') as file:
    while at < size:
      file.seek(at)
      length = int.from_bytes(file.read(_HEADER)[:8], 'little')
      offsets.append(at)
      at += length + _FRAME
  if at != size:
    raise errors.UserError(
      f"'{path}' is damaged: its last record, at byte {offsets[-1]}, should end"
      f' at {at}, and the file at {size}; prepare the data set again'
    )
  return np.array(offsets, np.int64)


def _folder(data: Data) -> Opened:
  import_tensorflow()
  import tensorflow_datasets as tfds

  assert data.folder is not None
  root = paths.local('data.folder', data.folder)
  for part in ('train', 'val'):
    if not (root / part).is_dir():
      raise errors.UserError(
        f"data.folder is '{data.folder}', which has no directory '{part}'; it"
        ' must hold train/CLASS/*.jpg and val/CLASS/*.jpg (or .jpeg, .png)'
      )
  builder: Any = tfds.ImageFolder(str(root))
  names = builder.info.features['label'].names
  opened = []
  for part in ('train', 'val'):
    # No public attribute has the paths; as_dataset would read the images.
    examples = builder._split_examples.get(part, [])
    empty = sorted(set(names) - {example.label for example in examples})
    if empty:
      raise errors.UserError(
        f"'{root / part}' has no image of {', '.join(empty)} (.jpg, .jpeg or"
        ' .png); add some, or remove that directory from both train and val'
      )
    labels = [names.index(example.label) for example in examples]
    opened.append(Files([str(e.image_path) for e in examples], labels))
  splits.check_classes(len(names), data)
  return Opened(*opened)
