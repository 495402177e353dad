"""The encoded images of a data set, each of which can be read by its number.

N images. Any image costs as much to read as the next one, so an epoch can have
any order and a run can resume anywhere.
"""

import os
import pathlib
from typing import Any, NamedTuple

import numpy as np

from dnal_jax import errors, paths
from dnal_jax.data import Data, folder, record_files, splits, tfds_sets
from dnal_jax.data.contents import Contents
from dnal_jax.data.crops import import_tensorflow
from dnal_jax.parallel import streams


class TfRecords:
  """The examples of one split of a prepared tensorflow-datasets data set."""

  upright = False  # published data sets are read as published
  mend = tfds_sets.AGAIN

  def __init__(self, features: Any, files: record_files.RecordFiles):
    self._features = features
    self._paths, self._table = files.paths, files.table

  def __len__(self) -> int:
    return len(self._table)

  def read(self, number) -> tuple[Any, Any]:
    """(encoded image, label) of image `number`, scalar tensors of a graph."""
    tf = import_tensorflow()
    streams.quiet_tensorflow()
    import tensorflow_datasets as tfds

    place = tf.gather(self._table, number)
    # No buffer: it would read the following records, which are not wanted.
    file = tf.raw_ops.TFRecordDatasetV2(
      filenames=tf.gather(self._paths, place[0])[None],
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
    return f'{self._paths[file]} at byte {offset}'


class Files:
  """Image files with labels."""

  upright = True  # turned as cameras note in their files
  mend = 'replace it'

  def __init__(self, images: folder.Images):
    # As bytes, since names of files need not be UTF-8.
    self._paths = [os.fsencode(path) for path in images.paths]
    self._labels = np.array(images.labels, np.int64)

  def __len__(self) -> int:
    return len(self._paths)

  def read(self, number) -> tuple[Any, Any]:
    """(encoded image, label) of image `number`, scalar tensors of a graph."""
    tf = import_tensorflow()
    path = tf.gather(self._paths, number)
    return tf.io.read_file(path), tf.gather(self._labels, number)

  def name(self, number: int) -> str:
    """The path of an image."""
    return os.fsdecode(self._paths[number])


class Opened(NamedTuple):
  """The training split, of which a part is for validation; the test split."""

  train: TfRecords | Files
  test: TfRecords | Files
  contents: Contents


def open_splits(data: Data) -> Opened:
  """Opens the two splits of a data set whose images are streamed.

  Raises:
    UserError: it is missing or damaged, or it has not `data.classes` classes.
  """
  if data.folder is not None:
    return _folder(data, paths.local('data.folder', data.folder))
  return _prepared(data)


def _prepared(data: Data) -> Opened:
  builder = tfds_sets.prepared(data.name, data.dir)
  features = builder.info.features
  if {'image', 'label'} - set(features) or not hasattr(
    features['label'], 'num_classes'
  ):
    raise errors.UserError(
      f"'{builder.data_path}' has the features {', '.join(features)}; an image"
      ' and its label (a class) are needed'
    )
  splits.check_classes(features['label'].num_classes, data)
  train, test = (
    record_files.open_files(builder, split)
    for split in ('train', data.test_split)
  )
  parts = {'train': train.fingerprint(), data.test_split: test.fingerprint()}
  return Opened(
    TfRecords(features, train),
    TfRecords(features, test),
    Contents(tuple(features['label'].names), parts),
  )


def _folder(data: Data, root: pathlib.Path) -> Opened:
  listing = folder.list_images(root)
  splits.check_classes(len(listing.class_names), data)
  print(folder.describe(root, listing))
  contents = folder.contents(root, listing)
  return Opened(Files(listing.train), Files(listing.val), contents)
