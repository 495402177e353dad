"""Crops of encoded images are those of PIL and torchvision."""

import io

import numpy as np
from photographs import jpeg, photographs
from PIL import Image
import pytest
from scipy import stats
from torchvision_crops import torchvision_centre, torchvision_window

from dnal_jax.data import crops, preprocessing

pytestmark = pytest.mark.xdist_group('streamed')  # one process imports TF


def encoded(image, kind='PNG'):
  file = io.BytesIO()
  image.save(file, kind)
  return file.getvalue()


def test_evaluation_crops_are_pils():
  """50 photographs of many sizes, modes and formats: no channel of any pixel
  differs by more than 1 of 255 levels, on average by less than 0.25; from what
  is computed without TensorFlow, for predictions, next to none differs."""
  tf = crops.import_tensorflow()
  crop = tf.function(
    lambda data: crops.centre_crop(
      data, size=224, short_side=256, upright=False
    ),
    input_signature=[tf.TensorSpec((), tf.string)],
  )
  rng = np.random.default_rng(0)
  for i in range(50):
    mode = {0: 'L', 1: 'CMYK'}.get(i % 7, 'RGB')
    data = jpeg(i, *rng.integers(100, 640, 2).tolist(), rng=rng, mode=mode)
    if i % 10 == 9:
      image = Image.open(io.BytesIO(data)).convert('RGBA')
      image.putalpha(i)
      data = encoded(image)
    got = crop(data).numpy().astype(int)
    image = Image.open(io.BytesIO(data))
    difference = abs(got - torchvision_centre(image, 224, 256))
    assert difference.max() <= 1, i
    assert difference.mean() < 0.25, i
    pixels = np.asarray(image.convert('RGB'))
    without = preprocessing.centre_crop(pixels, (224, 224), 256)
    difference = abs(got - without)
    assert difference.max() <= 1, i
    assert difference.mean() < 1e-3, i


def windows(shape, scale, n):
  tf = crops.import_tensorflow()
  draws = tf.random.stateless_uniform((n, crops.DRAWS - 1), (1, 2))
  shape = tf.constant(shape)

  @tf.function
  def all_of(draws):
    def window(d):
      return crops.random_window(shape, d, scale)

    return tf.map_fn(window, draws, fn_output_signature=tf.int32)

  return all_of(draws).numpy()


@pytest.mark.parametrize(
  ('shape', 'scale'), [((375, 500), (0.08, 1.0)), ((640, 427), (0.2, 1.0))]
)
def test_random_windows_are_torchvisions(shape, scale):
  """Area, aspect and place have the distributions of an independent sampler;
  a difference of 3 % would fail the test."""
  got = windows(shape, scale, 10_000)
  rng = np.random.default_rng(0)
  want = np.array(
    [torchvision_window(rng, *shape, scale) for _ in range(10_000)]
  )
  for figure in (
    lambda top, left, h, w: h * w,
    lambda top, left, h, w: w / h,
    lambda top, left, h, w: top + h / 2,
    lambda top, left, h, w: left + w / 2,
  ):
    samples = [figure(*boxes.T) for boxes in (got, want)]
    assert stats.ks_2samp(*samples).pvalue > 0.01
  top, left, height, width = got.T
  assert (top >= 0).all()
  assert (left >= 0).all()
  assert (top + height <= shape[0]).all()
  assert (left + width <= shape[1]).all()


def test_windows_that_always_fit_have_uniform_area_and_aspect():
  _, _, height, width = windows((1000, 1000), (0.1, 0.5), 4000).T
  share = height * width / 1e6
  uniform = stats.uniform(0.1, 0.4)
  assert stats.kstest(share, uniform.cdf).pvalue > 0.01
  span = np.log(4 / 3)
  aspect = stats.uniform(-span, 2 * span)
  assert stats.kstest(np.log(width / height), aspect.cdf).pvalue > 0.01


def test_a_panorama_gets_its_centre():
  boxes = windows((40, 1000), (0.9, 1.0), 20)
  assert (boxes == [0, 473, 40, 53]).all()


def test_random_crop_shows_its_window():
  """Of images that are enlarged, where PIL's resizing has no antialiasing."""
  tf = crops.import_tensorflow()
  flips = []
  for i in range(20):
    image = photographs()[i % 6].resize((90 + i, 100))
    draws = tf.random.stateless_uniform((crops.DRAWS,), (0, i))
    got = crops.random_crop(
      encoded(image),
      draws,
      size=128,
      scale=(0.08, 1.0),
      flip=True,
      upright=False,
    )
    shape = tf.constant((image.height, image.width))
    top, left, height, width = crops.random_window(
      shape, draws[1:], (0.08, 1.0)
    ).numpy()
    part = image.crop((left, top, left + width, top + height))
    want = np.asarray(part.resize((128, 128), Image.Resampling.BILINEAR))
    flips.append(bool(draws[0] < 0.5))
    want = want[:, ::-1] if flips[-1] else want
    assert abs(got.numpy().astype(int) - want).max() <= 1
  assert 5 <= sum(flips) <= 15
