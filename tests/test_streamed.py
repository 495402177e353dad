"""Streamed images: exact crops, of the right images, at every step."""

import dataclasses

from image_folder import (
  CLASSES,
  FOLDER,
  assert_same,
  open_source,
  take,
  write_folder,
)
import jax
import numpy as np
from PIL import Image
import pytest
from torchvision_crops import torchvision_centre

from dnal_jax import errors
from dnal_jax.data import sources

pytestmark = pytest.mark.xdist_group('streamed')  # one process imports TF


@pytest.fixture(scope='module')
def folder(tmp_path_factory):
  return write_folder(tmp_path_factory.mktemp('folder'))


def test_batches_are_a_function_of_seed_and_step(folder):
  steps = take(open_source(folder), 0, 12)  # 22 images: 5 steps an epoch
  assert_same(steps, take(open_source(folder), 0, 12))
  for first in (1, 3, 5, 7):  # in the middle of an epoch, at its start, later
    assert_same(steps[first:], take(open_source(folder), first, 12 - first))
  other = take(open_source(folder, seed=1), 0, 1)
  assert not np.array_equal(steps[0][0], other[0][0])


def test_inputs_may_be_asked_for_in_any_order(folder, monkeypatch):
  """Consecutive steps share a pipeline; any other step starts a new one."""
  source, started = open_source(folder), []
  batches = source._batches

  def counted(split, rows, step):
    started.append(step)
    return batches(split, rows, step)

  monkeypatch.setattr(source, '_batches', counted)
  want = take(open_source(folder), 0, 5)
  got = {}
  for step in (0, 1, 2, 4, 3, 3):
    got[step] = jax.device_get(source.inputs(step, 1))
    assert_same(got[step], want[step])
  assert started == [0, 4, 3, 3]
  source.close()
  source.close()
  assert_same(jax.device_get(source.inputs(4, 1)), want[4])
  assert started == [0, 4, 3, 3, 4]
  source.close()


def test_a_described_source_has_shapes_but_no_images(folder):
  opened = open_source(folder)
  data = dataclasses.replace(FOLDER, folder=str(folder))
  described = sources.describe_source(data, seed=0, batch_size=4)
  assert described.images == opened.images == 22
  assert described.steps_per_epoch == opened.steps_per_epoch == 5
  (batch,) = take(opened, 0, 1)
  assert described.input_shapes() == jax.eval_shape(lambda: batch)
  made = described.train_batch(batch, 0)
  assert_same(made, opened.train_batch(batch, 0))
  for ask in (
    lambda: described.inputs(0, 1),
    lambda: next(described.eval_inputs('test')),
  ):
    with pytest.raises(RuntimeError, match='without images'):
      ask()


def test_an_epoch_shows_every_image_once_and_the_next_in_other_crops(folder):
  images = open_source(folder, batch_size=11, validation=5)
  assert (images.images, images.steps_per_epoch) == (22, 2)
  labels = [batch[1] for batch in take(images, 0, 4)]
  first, second = (np.concatenate(labels[i : i + 2]) for i in (0, 2))
  split = images._splits['train']
  every = sorted(split.records._labels[split.ids])
  assert sorted(first) == sorted(second) == every
  one = open_source(folder, batch_size=1, train_limit=1)
  a, b = take(one, 0, 2)
  assert not np.array_equal(a[0], b[0])


def test_hosts_share_the_same_batch(folder):
  whole = take(open_source(folder), 3, 4)
  parts = [take(open_source(folder, host=(i, 2)), 3, 4) for i in (0, 1)]
  for batch, *shares in zip(whole, *parts, strict=True):
    assert_same(batch, jax.tree.map(lambda *a: np.concatenate(a), *shares))
  with pytest.raises(errors.UserError, match='which 3 hosts cannot share'):
    open_source(folder, host=(0, 3))


@pytest.mark.parametrize(('split', 'images'), [('validation', 5), ('test', 7)])
def test_evaluation_counts_every_image_once(folder, split, images):
  opened = open_source(folder)
  batches = [jax.device_get(b) for b, _ in opened.eval_inputs(split)]
  assert [len(b[1]) for b in batches] == [4, 4]
  pixels, labels, weights = (
    np.concatenate(a) for a in zip(*batches, strict=True)
  )
  assert list(weights) == [1] * images + [0] * (8 - images)
  files, ids, _ = opened._splits[split]
  for i, number in enumerate(ids):
    want = torchvision_centre(Image.open(files.name(number)), 32, 36)
    assert abs(pixels[i].astype(int) - want).max() <= 1
    assert CLASSES[labels[i]] in files.name(number)


def test_validation_images_do_not_train(folder):
  splits = open_source(folder)._splits
  train, validation = splits['train'].ids, splits['validation'].ids
  assert sorted([*train, *validation]) == list(range(27))
