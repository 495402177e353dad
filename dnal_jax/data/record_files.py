"""The TFRecord files of a prepared data set: where their records are, and which
of them is damaged.

TFRecord files have no index: one is made from the headers of their records,
without reading the images, and cached (two int64 an image).
"""

from concurrent import futures
import hashlib
from typing import Any, NamedTuple, NoReturn

import numpy as np

from dnal_jax import errors
from dnal_jax.data import cache, tfds_sets
from dnal_jax.data.contents import Part
from dnal_jax.data.crops import import_tensorflow

# A TFRecord: its length (8 bytes, little-endian), the checksum of the length
# (4), the data, and the checksum of the data (4).
_HEADER, _FRAME = 12, 16
# In the cache (`cache.read`).
_ARRAYS = {'sizes': ('int64', 'f'), 'table': ('int64', 'n2')}


class RecordFiles(NamedTuple):
  """The files of one split."""

  paths: list[str]
  sizes: np.ndarray  # [files] int64, in bytes
  table: np.ndarray  # [N, 2] int64: number of the file, offset in bytes

  def fingerprint(self) -> Part:
    """Of the sizes of the files, in order."""
    digest = hashlib.sha256(self.sizes.tobytes()).hexdigest()
    return Part(len(self.table), digest[:16])


def open_files(builder: Any, split: str) -> RecordFiles:
  """Finds the records of a split.

  Raises:
    UserError: there is no such split, its files are of another format, or one
      of them is missing or does not have the records that it should have.
  """
  try:
    paths, lengths = _described(builder, split)
  except errors.UserError:
    raise
  except Exception as error:  # tensorflow-datasets raises what comes
    info = builder.data_path / 'dataset_info.json'
    raise errors.UserError(
      f"'{info}' is damaged ({type(error).__name__}: {error});"
      f' {tfds_sets.AGAIN}'
    ) from error
  try:
    sizes = np.array([path.stat().length for path in paths], np.int64)
  except (OSError, import_tensorflow().errors.OpError) as error:
    lost = next((path for path in paths if not path.exists()), paths[0])
    raise errors.UserError(
      f"'{lost}' is missing or cannot be read; {tfds_sets.AGAIN}"
    ) from error
  table = _table(builder, split, paths, sizes, lengths)
  return RecordFiles([str(path) for path in paths], sizes, table)


def _described(builder: Any, split: str) -> tuple[list[Any], list[int]]:
  """Paths of the files of a split, and how many records each should have."""
  info = builder.info
  file_format = getattr(info.file_format, 'value', info.file_format)
  if file_format != 'tfrecord':
    raise errors.UserError(
      f"'{builder.data_path}' holds {file_format} files; only tfrecord files,"
      ' the default of tensorflow-datasets, are read'
    )
  if split not in info.splits:
    raise errors.UserError(
      f"'{builder.data_path}' has no split '{split}', only"
      f' {", ".join(info.splits)}; was one of its archives missing when it was'
      f' prepared? {tfds_sets.AGAIN.capitalize()}'
    )
  found = info.splits[split]
  return list(found.filepaths), list(found.shard_lengths)


def raise_damage(builder: Any, split: str, error: Exception) -> NoReturn:
  """Finds out why reading a split has failed with `error`; reads all of it.

  Raises:
    UserError: in any case; names the damaged file, if one is.
  """
  files = open_files(builder, split)
  for number, path in enumerate(files.paths):
    place = _first_damage(path, files.table[files.table[:, 0] == number, 1])
    if place is not None:
      raise errors.UserError(
        f"'{path}' is damaged at byte {place}; {tfds_sets.AGAIN}"
      ) from error
  lines = str(error).strip().splitlines() or [type(error).__name__]
  raise errors.UserError(
    f"split '{split}' of '{builder.data_path}' cannot be read ({lines[0]});"
    f' {tfds_sets.AGAIN}'
  ) from error


def _first_damage(path: str, offsets: np.ndarray) -> int | None:
  """The offset of the first record that its checksum disagrees with."""
  tf = import_tensorflow()
  whole = 0
  try:
    for _ in tf.data.TFRecordDataset(path):
      whole += 1
  except tf.errors.OpError:
    return int(offsets[min(whole, len(offsets) - 1)])
  return None


def _table(
  builder: Any,
  split: str,
  paths: list[Any],
  sizes: np.ndarray,
  lengths: list[int],
) -> np.ndarray:
  """[N, 2] int64: file and offset of every record of a split."""
  digest = tfds_sets.digest(builder.data_path / 'dataset_info.json')
  file = cache.path(f'{builder.name}-{split}-{digest}-records.npz')
  known = cache.read(file, _ARRAYS)
  if known is not None and np.array_equal(known['sizes'], sizes):
    return known['table']
  with futures.ThreadPoolExecutor(16) as pool:
    offsets = list(pool.map(_offsets, paths, sizes))
  for path, found, records in zip(paths, offsets, lengths, strict=True):
    if len(found) != records:
      raise errors.UserError(
        f"'{path}' should have {records} records and has {len(found)};"
        f' {tfds_sets.AGAIN}'
      )
  numbers = np.repeat(np.arange(len(paths)), lengths)
  table = np.stack([numbers, np.concatenate(offsets)], 1)
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
      f' at {at}, and the file at {size}; {tfds_sets.AGAIN}'
    )
  return np.array(offsets, np.int64)
