"""The split into training and validation images, and known sizes."""

import numpy as np

from dnal_jax import errors, paths
from dnal_jax.data import Data, folder

_CLASSES = {'imagenet2012': 1000}
# Images of the training splits, including those held out for validation.
_TRAIN_IMAGES = {
  'digits': 1437,
  'mnist': 60_000,
  'fashion_mnist': 60_000,
  'cifar10': 50_000,
  'cifar100': 50_000,
  'imagenet2012': 1_281_167,
}


def held_out(images: int, data: Data) -> tuple[np.ndarray, np.ndarray]:
  """Numbers of the images to train on, and of those for validation.

  Validation images are a random part of the training split, which is the same
  for every seed, so that runs with different seeds can be compared.

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
  """The number of classes, without reading the images.

  Raises:
    UserError: it is not known.
  """
  if data.folder is not None:
    root = paths.local('data.folder', data.folder)
    return len(folder.class_names(root))
  if data.name not in _CLASSES:
    raise errors.UserError(f"data.classes must be set for '{data.name}'")
  return _CLASSES[data.name]


def images(data: Data) -> int:
  """The number of images in the training split, without reading them.

  Raises:
    UserError: it is not known.
  """
  if data.name not in _TRAIN_IMAGES:
    raise errors.UserError(
      f"data.name is '{data.name}', whose number of images is not known without"
      f' reading it; known are {", ".join(_TRAIN_IMAGES)}, and any data.folder'
    )
  return _TRAIN_IMAGES[data.name]


def check_classes(found: int, data: Data) -> None:
  """Checks that the network has as many classes as the data set.

  Raises:
    UserError: it has not.
  """
  if found != data.classes:
    raise errors.UserError(
      f"data.classes is {data.classes}, but '{data.title}' has {found} classes;"
      ' set it so'
    )
