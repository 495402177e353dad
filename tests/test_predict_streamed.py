"""Predictions for photographs are those of a streamed run's evaluation."""

import dataclasses
import io
import pathlib

from image_folder import CLASSES, FOLDER, open_source, write_folder
import numpy as np
from photographs import jpeg
from PIL import Image, ImageOps
import pytest
from saved_folder import evaluated, save

from dnal_jax import errors
from dnal_jax.data import crops, folder, image_files
from dnal_jax.data.preprocessing import Preprocessing

pytestmark = pytest.mark.xdist_group('streamed')  # one process imports TF
ORIENTATION = 0x0112  # Exif's tag


@pytest.fixture(scope='module')
def root(tmp_path_factory):
  """Photographs to test on as JPEGs, and the same as PNGs; one is stored on its
  side."""
  root = write_folder(tmp_path_factory.mktemp('folder'))
  for i, path in enumerate(sorted((root / 'val').rglob('*.jpg'))):
    with Image.open(path) as image:
      exif = image.getexif()
      exif[ORIENTATION] = 6 if i == 2 else 1
      image.save(path, exif=exif, quality=95)
    upright = image_files.read(path, 3)
    Image.fromarray(upright).save(path.with_suffix('.png'))
  return root


def test_predictions_are_those_of_the_evaluation(root, tmp_path):
  """From the same pixels, the same logits but for rounding. TensorFlow decodes
  of a JPEG only the part that the crop needs, and at its edges interpolates
  colours from fewer pixels than Pillow, which decodes all of it: a level or two
  of 255 there. That moves logits by less than 2 % of the largest, so the best
  class can change only where the two best are closer than twice that."""
  model = save(tmp_path, FOLDER, CLASSES)
  want = evaluated(model, open_source(root), 'test')
  paths = folder.list_images(root).val.paths
  assert len(paths) == len(want) == 14
  got = model.predict(image_files.read(pathlib.Path(path), 3) for path in paths)
  largest = abs(want).max()
  difference = abs(got.logits - want).max(1) / largest
  first, second = -np.sort(-want, 1)[:, :2].T
  same = got.logits.argmax(1) == want.argmax(1)
  for path, off, agrees, gap in zip(
    paths, difference, same, (first - second) / largest, strict=True
  ):
    limit = 1e-5 if path.endswith('.png') else 0.02
    assert off < limit, path
    assert agrees or gap < 2 * limit, path
  assert got.class_names == CLASSES


@pytest.fixture
def photograph():
  return Image.open(io.BytesIO(jpeg(1, 50, 37, rng=np.random.default_rng(0))))


@pytest.mark.parametrize(
  ('name', 'mode'),
  [
    *(('a.png', mode) for mode in ('RGB', 'RGBA', 'L', 'LA', 'P', '1', 'I;16')),
    *(('a.jpg', mode) for mode in ('RGB', 'L', 'CMYK')),
    *(('a.bmp', 'RGB'), ('a.gif', 'P'), ('a.webp', 'RGB')),
  ],
)
def test_files_are_decoded_as_in_the_evaluation(
  name, mode, photograph, tmp_path
):
  tf = crops.import_tensorflow()
  if mode == 'I;16':
    many = 35 * np.arange(37 * 50, dtype=np.uint16).reshape(37, 50)
    photograph = Image.fromarray(many)
  photograph.convert(mode).save(tmp_path / name)
  data = (tmp_path / name).read_bytes()
  if name == 'a.jpg':
    want = tf.io.decode_jpeg(data, 3, dct_method='INTEGER_ACCURATE')
  else:
    want = tf.io.decode_image(data, 3, expand_animations=False)
  got = image_files.read(tmp_path / name, 3)
  assert (got.dtype, got.shape) == (np.uint8, (37, 50, 3))
  limit = 1 if mode == 'CMYK' else 0  # two formulas
  assert abs(got.astype(int) - want.numpy()).max() <= limit
  gray = image_files.read(tmp_path / name, 1)
  assert gray.shape == (37, 50, 1)
  assert abs(gray.astype(int) - got.mean(2, keepdims=True)).mean() < 30


def test_photographs_are_turned_upright(photograph, tmp_path):
  path = tmp_path / 'a.jpg'
  for orientation in range(1, 9):
    exif = Image.Exif()
    exif[ORIENTATION] = orientation
    photograph.save(path, exif=exif)
    with Image.open(path) as image:
      want = np.asarray(ImageOps.exif_transpose(image))
    np.testing.assert_array_equal(image_files.read(path, 3), want)


def test_files_have_one_or_three_channels():
  for channels in (1, 3):
    image_files.check_channels(channels)
  with pytest.raises(errors.UserError, match='reads 4 channels, and image fil'):
    image_files.check_channels(4)


def test_the_thinnest_images_have_a_centre():
  preprocessing = Preprocessing.of(dataclasses.replace(FOLDER, folder='x'))
  for shape in ((1, 5000, 3), (5000, 1, 1), (1, 1, 3)):
    got = preprocessing(np.full(shape, 200, np.uint8))
    assert (got.shape, got.dtype) == ((32, 32, 3), np.uint8)
    assert (got == 200).all()
