"""Which images train, which choose, and what a label may be."""

import pathlib

import numpy as np

from dnal_jax import errors
from dnal_jax.data import Data

_CLASSES = {'imagenet2012': 1000}
# Images of the training splits, those to validate on among them.
_TRAIN_IMAGES = {
  'digits': 1437,
  'mnist': 60_000,
  'fashion_mnist': 60_000,
  'cifar10': 50_000,
  'cifar100': 50_000,
  'imagenet2012': 1_281_167,
}


def held_out(images: int, data: Data) -> tuple[np.ndarray, np.ndarray]:
  """Numbers of the images to train on and of those to validate on.

  Validation images are a fixed random part of the training split, the same
  for every seed, so that runs can be compared on it.

  Raises:
    UserError: the split is not larger than `data.validation`.
  """
  order = np.random.default_rng(0).permutation(images)
  if data.validation >= images:
    raise errors.UserError(
      f'data.validation is {data.validation}, but the training split of'
      f" '{data.title}' has {images} images; take fewer"
    )
  return order[data.validation :][: data.train_limit], order[: data.validation]


def classes(data: Data) -> int:
  """How many classes the data has, told without reading it.

  Raises:
    UserError: that cannot be told.
  """
  if data.folder is not None:
    train = pathlib.Path(data.folder).expanduser() / 'train'
    if not train.is_dir():
      raise errors.UserError(
        f"data.folder is '{data.folder}', which has no directory 'train'; it"
        ' must hold train/CLASS/*.jpg and val/CLASS/*.jpg (or .jpeg, .png)'
      )
    return sum(path.is_dir() for path in train.iterdir())
  if data.name not in _CLASSES:
    raise errors.UserError(f"data.classes must be set for '{data.name}'")
  return _CLASSES[data.name]


def images(data: Data) -> int:
  """How many images the training split has, told without reading it.

  Raises:
    UserError: that cannot be told.
  """
  if data.name not in _TRAIN_IMAGES:
    raise errors.UserError(
      f"how many images '{data.name}' has is not known without reading it, only"
      f' those of {", ".join(_TRAIN_IMAGES)}, and of a data.folder'
    )
  return _TRAIN_IMAGES[data.name]


def check_classes(found: int, data: Data) -> None:
  """Raises UserError unless the head has as many classes as the data."""
  if found != data.classes:
    raise errors.UserError(
      f"data.classes is {data.classes}, but '{data.title}' has {found} classes;"
      ' set it so'
    )
