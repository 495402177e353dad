"""Finds and decodes the image files that a user names; without TensorFlow.

H height, W width, C channels.
"""

import glob
import pathlib

import numpy as np
from PIL import Image, UnidentifiedImageError

from dnal_jax import errors, paths
from dnal_jax.data import exif, folder

_MODES = {1: 'L', 3: 'RGB'}  # channels -> Pillow's mode


def find(name: str) -> list[pathlib.Path]:
  """The files that are named: a file, those of a pattern such as 'a/*.jpg', or
  all images at any depth below a folder.

  Raises:
    UserError: the name stands for no file.
  """
  path = paths.local('FILE', name)
  matches = [str(path)]
  if not path.exists():
    matches = sorted(glob.glob(str(path), recursive=True))
  files = [file for match in matches for file in _files(pathlib.Path(match))]
  if not files and not path.exists() and not glob.has_magic(str(path)):
    raise errors.UserError(f"'{name}' does not exist")
  if not files:
    raise errors.UserError(
      f"'{name}' is no image file, no folder with images (they end in"
      f" {', '.join(folder.ENDINGS)}), and no pattern such as 'DIR/*.jpg'"
    )
  return files


def _files(path: pathlib.Path) -> list[pathlib.Path]:
  """A file as it is, or the images below a folder, but for hidden ones."""
  if path.is_file():
    return [path]
  return sorted(
    file
    for file in path.rglob('*')
    if file.suffix.lower() in folder.ENDINGS
    and not file.is_dir()
    and not any(p.startswith('.') for p in file.relative_to(path).parts)
  )


def check_channels(channels: int) -> None:
  """Raises UserError unless files can be read with that many channels."""
  if channels not in _MODES:
    raise errors.UserError(
      f'the network reads {channels} channels, and image files have 1 or 3; use'
      ' dnal_jax.load(DIR).predict(images) in Python'
    )


def read(path: pathlib.Path, channels: int) -> np.ndarray:
  """[H, W, C] uint8 of the image in a file, upright.

  As `crops` decodes it: of JPEGs the orientation is honoured that cameras note
  in them, an alpha channel is dropped, of an animation the first image counts.

  Raises:
    UserError: the file cannot be read or decoded.
  """
  try:
    with path.open('rb') as file:
      turn = exif.orientation(file.read(exif.HEAD))
    with Image.open(path) as image:
      if image.mode.startswith('I;16'):  # Pillow would cut off values above 255
        image = Image.fromarray((np.asarray(image) >> 8).astype(np.uint8))
      pixels = np.asarray(image.convert(_MODES[channels]))
  except Exception as error:  # Pillow's decoders raise any kind
    reason = ' '.join(str(error).split()) or type(error).__name__
    if isinstance(error, UnidentifiedImageError):
      reason = 'no known image format'
    raise errors.UserError(f"'{path}' cannot be decoded ({reason})") from error
  return exif.upright(pixels.reshape(*pixels.shape[:2], channels), turn)
