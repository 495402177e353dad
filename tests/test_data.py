"""Disjoint splits, and batches that are a function of (seed, step)."""

import dataclasses
from functools import partial
import pathlib
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dnal_jax import errors
from dnal_jax.data import Data, batches, memory, sources

AS_IS = Data('numbered', (0.0,), (1.0,), image=8, classes=20, validation=1)
DIGITS = Data(
  name='digits', mean=(0.3,), std=(0.4,), image=8, classes=10, validation=297
)


def load(**changes):
  return memory.load(dataclasses.replace(DIGITS, **changes))


def rows(split):
  return {image.tobytes() for image in split.images}


def test_digits_splits_are_disjoint_and_complete():
  splits = load()
  sizes = [len(s.labels) for s in splits[:3]]
  assert sizes == [1140, 297, 360]
  train, validation, test = map(rows, splits[:3])
  assert len(train | validation | test) == sum(sizes)
  counts = np.bincount(splits.test.labels)
  assert counts.min() >= 34  # stratified: 35 or so of each of ten
  assert splits.train.images.dtype == np.uint8
  assert splits.train.images.max() == 255
  assert splits.contents.class_names == tuple('0123456789')


def test_small_images_get_margins_and_channels():
  splits = load(image=12, mean=(0.3,) * 3, std=(0.4,) * 3)
  images = splits.train.images
  assert images.shape == (1140, 12, 12, 3)
  assert images[:, :2].max() == images[:, -2:].max() == 0
  np.testing.assert_array_equal(images[..., 0], images[..., 2])
  plain = load().train.images
  np.testing.assert_array_equal(images[:, 2:10, 2:10, :1], plain)


@pytest.mark.parametrize(
  ('change', 'message'),
  [
    ({'classes': 12}, "data.classes is 12, but 'digits' has 10"),
    ({'image': 6}, 'images of 8x8 pixels; set it to 8 or more'),
    ({'validation': 5000}, 'has 1437 images; take fewer'),
  ],
)
def test_sizes_that_do_not_fit(change, message):
  with pytest.raises(errors.UserError, match=message):
    load(**change)


def test_unknown_name_and_missing_directory(monkeypatch):
  with pytest.raises(errors.UserError, match="did you mean 'cifar10'"):
    load(name='cifra10')
  with pytest.raises(errors.UserError, match=r"data\.dir is '/nowhere'"):
    load(name='cifar10', dir='/nowhere')
  with pytest.raises(errors.UserError, match="read from 'foo://bucket'"):
    load(name='cifar10', dir='foo://bucket')
  monkeypatch.setenv('TFDS_DATA_DIR', '/gone')
  with pytest.raises(errors.UserError, match="TFDS_DATA_DIR is '/gone'"):
    load(name='cifar10')


def batch(images, labels, seed, step, **changes):
  order = batches.epoch_order(seed, step // 5, len(labels))
  return batches.train_batch(
    images,
    labels,
    order,
    step,
    step % 5,
    seed=seed,
    batch_size=4,
    data=dataclasses.replace(AS_IS, **changes),
  )


@pytest.fixture
def numbered():
  """Twenty images, each with a bright pixel at one place, numbered."""
  images = np.zeros((20, 8, 8, 1), np.uint8)
  images[:, 3, 2, 0] = np.arange(1, 21)
  return jnp.asarray(images), jnp.arange(20)


def open_source(**changes):
  return sources.open_source(
    dataclasses.replace(DIGITS, **changes),
    seed=0,
    batch_size=200,
    eval_batch_size=100,
  )


def test_inputs_are_those_of_the_epoch_of_a_step():
  source = open_source()
  assert (source.images, source.steps_per_epoch) == (1140, 5)
  assert source.steps_per_call > 1
  images, labels, order = source.inputs(3, 2)
  np.testing.assert_array_equal(images, load().train.images)
  np.testing.assert_array_equal(labels, load().train.labels)
  for step in (5, 0, 12):  # later, and again
    _, _, other = source.inputs(step, 1)
    want = batches.epoch_order(0, step // 5, 1140)
    np.testing.assert_array_equal(other, want)
    assert np.array_equal(other, order) == (step < 5)
  with pytest.raises(AssertionError):
    source.inputs(3, 3)  # in two epochs
  source.close()
  source.close()


def test_a_described_source_has_shapes_but_no_images():
  opened = open_source()
  described = sources.describe_source(DIGITS, seed=0, batch_size=200)
  assert described.images == opened.images
  assert described.steps_per_epoch == opened.steps_per_epoch
  assert described.steps_per_call == opened.steps_per_call
  inputs = opened.inputs(0, 1)
  assert described.input_shapes() == jax.eval_shape(lambda: inputs)
  made, want = (s.train_batch(inputs, 2) for s in (described, opened))
  jax.tree.map(np.testing.assert_array_equal, made, want)
  for ask in (
    lambda: described.inputs(0, 1),
    lambda: next(described.eval_inputs('test')),
    lambda: described.eval_batch(inputs[:2], 0),
  ):
    with pytest.raises(RuntimeError, match='without images'):
      ask()


def test_sources_that_cannot_be():
  with pytest.raises(errors.UserError, match=r"digit'.*did you mean 'digits'"):
    open_source(name='digit')
  for source in (
    lambda: open_source(train_limit=100),
    lambda: sources.describe_source(DIGITS, seed=0, batch_size=2000),
  ):
    with pytest.raises(errors.UserError, match=r'batch_size is .* there are'):
      source()
  with pytest.raises(errors.UserError, match=r"'svhn'.* not known without"):
    sources.describe_source(
      dataclasses.replace(DIGITS, name='svhn'), seed=0, batch_size=2
    )


def test_an_epoch_shows_every_image_once_and_the_next_in_other_order(numbered):
  epochs = [
    np.concatenate([batch(*numbered, 0, 5 * e + s).label for s in range(5)])
    for e in (0, 1)
  ]
  assert sorted(epochs[0]) == sorted(epochs[1]) == list(range(20))
  assert list(epochs[0]) != list(epochs[1])


def test_batches_are_a_function_of_seed_and_step(numbered):
  draw = partial(batch, *numbered, crop_pad=2, flip=True)
  first, again, other = draw(0, 3), draw(0, 3), draw(1, 3)
  jax.tree.map(np.testing.assert_array_equal, first, again)
  assert not np.array_equal(first.image, other.image)


def test_crops_and_flips_cover_what_they_should(numbered):
  """Shifts of -2 to 2 both ways, mirrored or not; the image stays itself."""
  places = set()
  for step in range(60):
    drawn = batch(*numbered, 0, step, crop_pad=2, flip=True)
    for image, label in zip(np.asarray(drawn.image), drawn.label, strict=True):
      (row,), (column,), _ = np.nonzero(image)
      assert round(float(image.max()) * 255) == label + 1
      places.add((int(row), int(column)))
  columns = {2 + d for d in range(-2, 3)} | {5 + d for d in range(-2, 3)}
  assert places == {(3 + d, c) for d in range(-2, 3) for c in columns}


def test_normalisation():
  data = dataclasses.replace(DIGITS, mean=(0.5,), std=(0.25,))
  pixels = jnp.array([0, 255], jnp.uint8).reshape(2, 1, 1, 1)
  got = batches.normalise(pixels, data)
  np.testing.assert_allclose(got.ravel(), [-2, 2], rtol=1e-6)


def test_evaluation_counts_every_image_once(numbered):
  seen, weights = [], []
  for start in range(0, 20, 8):
    drawn = batches.eval_batch(
      *numbered, jnp.array(start), batch_size=8, data=AS_IS
    )
    seen += [int(n) for n in drawn.label]
    weights += [int(w) for w in drawn.weight]
  counted = [n for n, w in zip(seen, weights, strict=True) if w]
  assert counted == list(range(20))
  assert len(seen) == 24


# Writes 60 + 20 images as tensorflow-datasets itself stores fashion_mnist.
WRITE = """
import sys
import numpy as np
import tensorflow as tf
import tensorflow_datasets as tfds

rng = np.random.default_rng(0)
features = tfds.features.FeaturesDict({
  'image': tfds.features.Image(shape=(28, 28, 1)),
  'label': tfds.features.ClassLabel(num_classes=10),
})
def split(n):
  return tf.data.Dataset.from_tensor_slices({
    'image': rng.integers(0, 256, (n, 28, 28, 1), np.uint8),
    'label': np.arange(n) % 10,
  })
tfds.dataset_builders.store_as_tfds_dataset(
  'fashion_mnist', '3.0.1', features=features,
  split_datasets={'train': split(60), 'test': split(20)},
  data_dir=sys.argv[1], description='', homepage='',
)
"""
READ = """
import sys
from dnal_jax.data import Data, memory
splits = memory.load(Data(
  'fashion_mnist', (0.3,) * 3, (0.3,) * 3, image=32, classes=10,
  validation=10, dir=sys.argv[1], train_limit=40))
print([s.images.shape for s in splits[:3]], splits.test.labels.sum(),
      'tensorflow' in sys.modules)
"""
# Damages the cache, as a disk that was full leaves it.
DAMAGE = """
import os, pathlib
for cached in pathlib.Path(os.environ['XDG_CACHE_HOME']).rglob('*.npz'):
  cached.write_bytes(b'')
"""


def written(directory):
  files = directory.rglob('*')
  return {f: (f.stat().st_mtime_ns, f.stat().st_size) for f in files}


@pytest.mark.slow
def test_real_tfds_files_are_read_once(tmp_path, monkeypatch):
  monkeypatch.setenv('XDG_CACHE_HOME', str(tmp_path / 'cache'))

  def python(code):
    done = subprocess.run(
      [sys.executable, '-c', code, str(tmp_path / 'tfds')],
      cwd=pathlib.Path(__file__).parent.parent,
      capture_output=True,
      text=True,
      check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.splitlines()[-1]

  (tmp_path / 'tfds').mkdir()
  shapes = '[(40, 32, 32, 3), (10, 32, 32, 3), (20, 32, 32, 3)] 90'
  assert python(WRITE + READ + DAMAGE + READ) == f'{shapes} True'
  before = written(tmp_path / 'tfds')
  assert python(READ) == f'{shapes} False'  # from the cache, no TensorFlow
  assert written(tmp_path / 'tfds') == before
