"""Data sets that fit in memory, as uint8 arrays, in three disjoint splits.

N images, H height, W width, C channels. What tensorflow-datasets has read once
is cached as one .npz, so that the next start needs no TensorFlow.
"""

import hashlib
import os
import pathlib
from typing import Any, NamedTuple
import zipfile

import numpy as np

from dnal_jax import errors
from dnal_jax.data import Data

# The tensorflow-datasets of small images with the features image and label.
_TFDS = ('cifar10', 'cifar100', 'fashion_mnist', 'mnist')
NAMES = ('digits', *_TFDS)
_ARRAYS = {'train_images', 'train_labels', 'test_images', 'test_labels'}


class Split(NamedTuple):
  """Images and labels, in the order in which they are numbered."""

  images: np.ndarray  # [N, H, W, C] uint8
  labels: np.ndarray  # [N] int32


class Splits(NamedTuple):
  """Training; validation, for choices; test, to be read once at the end."""

  train: Split
  validation: Split
  test: Split


def load(data: Data) -> Splits:
  """Reads a data set; images get a margin of zeros up to `data.image` squared
  and gray is repeated to the channels of `data.mean`.

  Validation images are a fixed random part of the training split, the same
  for every seed, so that runs can be compared on it.

  Raises:
    UserError: unknown name, missing directory, or sizes that do not fit.
  """
  name = data.name
  if name not in NAMES:
    hint = errors.did_you_mean(name, NAMES)
    raise errors.UserError(f"data.name is '{name}'{hint}")
  raw = _digits() if name == 'digits' else _tfds(name, data.dir)
  train, test = (
    Split(_fit(images, data), labels.astype(np.int32)) for images, labels in raw
  )
  found = int(max(train.labels.max(), test.labels.max())) + 1
  if found != data.classes:
    raise errors.UserError(
      f"data.classes is {data.classes}, but '{name}' has {found} classes;"
      ' set it so'
    )
  order = np.random.default_rng(0).permutation(len(train.labels))
  if data.validation >= len(order):
    raise errors.UserError(
      f'data.validation is {data.validation}, but the training split has'
      f' {len(order)} images; take fewer'
    )
  held_out = order[: data.validation]
  chosen = order[data.validation :][: data.train_limit]
  return Splits(
    Split(train.images[chosen], train.labels[chosen]),
    Split(train.images[held_out], train.labels[held_out]),
    test,
  )


def _digits() -> list[tuple[np.ndarray, np.ndarray]]:
  """scikit-learn's 1,797 8x8 digits; a stratified fifth is the test split."""
  from sklearn import datasets, model_selection

  bunch: Any = datasets.load_digits()
  images = np.round(bunch['images'] * (255 / 16)).astype(np.uint8)[..., None]
  labels = bunch['target']
  parts: Any = model_selection.train_test_split(
    images, labels, test_size=0.2, stratify=labels, random_state=0
  )
  return [(parts[0], parts[2]), (parts[1], parts[3])]


def _tfds(
  name: str, directory: str | None
) -> list[tuple[np.ndarray, np.ndarray]]:
  """Train and test of a tensorflow-datasets data set, cached."""
  given = directory or os.environ.get('TFDS_DATA_DIR')
  if given and not pathlib.Path(given).is_dir():
    key = 'data.dir' if directory else 'TFDS_DATA_DIR'
    raise errors.UserError(
      f"{key} is '{given}', which is not a directory; create it, or name the"
      f' one that holds {name}/'
    )
  root = pathlib.Path(given or '~/tensorflow_datasets').expanduser()
  arrays = _read_cache(_cache_file(root, name))
  if arrays is None:
    arrays = _read_tfds(name, str(root))
    _write_cache(_cache_file(root, name), arrays)
  return [
    (arrays[f'{split}_images'], arrays[f'{split}_labels'])
    for split in ('train', 'test')
  ]


def _cache_file(root: pathlib.Path, name: str) -> pathlib.Path | None:
  """Named by the content of the prepared data set's own description, so that
  another version is another file; None before it is prepared.

  Kept in the user's cache, because data directories are often read-only.
  """
  prepared = sorted(root.glob(f'{name}/*/dataset_info.json'))
  if not prepared:
    return None
  digest = hashlib.sha256(prepared[-1].read_bytes()).hexdigest()[:16]
  home = os.environ.get('XDG_CACHE_HOME') or '~/.cache'
  return pathlib.Path(home).expanduser() / 'dnal_jax' / f'{name}-{digest}.npz'


def _read_cache(path: pathlib.Path | None) -> dict[str, np.ndarray] | None:
  """None where there is no cache, or not a whole one."""
  try:
    if path is not None and path.exists():
      with np.load(path, allow_pickle=False) as file:
        arrays = dict(file)
      return arrays if set(arrays) == _ARRAYS else None
  except (OSError, ValueError, zipfile.BadZipFile):
    pass
  return None


def _write_cache(path: pathlib.Path | None, arrays) -> None:
  """The data has been read; a cache that cannot be written stops nothing."""
  if path is None:
    return
  part = path.with_name(f'{path.stem}.{os.getpid()}.npz')
  try:
    path.parent.mkdir(parents=True, exist_ok=True)
    np.savez(part, allow_pickle=False, **arrays)
    part.replace(path)
  except OSError as error:
    print(f"no cache in '{path.parent}' ({error.strerror}); reading anew next")


def _read_tfds(name: str, root: str) -> dict[str, np.ndarray]:
  os.environ.setdefault('TF_CPP_MIN_LOG_LEVEL', '2')  # TensorFlow is talkative
  try:
    import tensorflow_datasets as tfds
  except ImportError as error:
    raise errors.UserError(
      f"data set '{name}' is read by tensorflow-datasets, which does not"
      f' import here ({error}); pip install -r requirements.txt'
    ) from error
  builder: Any = tfds.builder(name, data_dir=root)
  try:
    builder.download_and_prepare()
  except Exception as error:  # network, disk, checksums: tfds has no one type
    reason = str(error).strip().splitlines() or [type(error).__name__]
    raise errors.UserError(
      f"data set '{name}' is not prepared in '{root}' and could not be"
      f' downloaded ({reason[0]}); set TFDS_DATA_DIR or data.dir to a'
      ' directory that holds it'
    ) from error
  arrays = {}
  for split in ('train', 'test'):
    whole = tfds.as_numpy(builder.as_dataset(split=split, batch_size=-1))
    arrays[f'{split}_images'] = np.asarray(whole['image'])
    arrays[f'{split}_labels'] = np.asarray(whole['label'])
  return arrays


def _fit(images: np.ndarray, data: Data) -> np.ndarray:
  """Zero margins up to data.image squared; one gray channel repeated."""
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
  top, left = (image - height) // 2, (image - width) // 2
  margins = (top, image - height - top), (left, image - width - left)
  images = np.pad(images, ((0, 0), *margins, (0, 0)))
  return np.repeat(images, channels, -1) if have != channels else images
