"""Streamed images that cannot be decoded, and folders that do not fit."""

import shutil

from commands import SHORT, Processes, command, metrics, result
from image_folder import (
  CLASSES,
  assert_same,
  open_source,
  take,
  write_folder,
)
from in_process import run
import jax
import numpy as np
from photographs import jpeg
import pytest

from configs import mbv2_imagenet
import dnal_jax
from dnal_jax import errors
from dnal_jax.data import crops, record_files

pytestmark = pytest.mark.xdist_group('streamed')  # one process imports TF


@pytest.fixture(scope='module')
def folder(tmp_path_factory):
  return write_folder(tmp_path_factory.mktemp('folder'))


@pytest.fixture
def damaged(folder, tmp_path):
  """The folder with a truncated JPEG, and an empty file named .jpg."""
  root = tmp_path / 'damaged'
  shutil.copytree(folder, root)
  whole = root / 'train' / 'bee' / '7.jpg'
  whole.write_bytes(whole.read_bytes()[:300])
  (root / 'val' / 'cow' / '2.jpg').write_bytes(b'')
  return root


def test_a_truncated_jpeg_is_named(damaged):
  with pytest.raises(errors.UserError, match=r'bee/7\.jpg; replace it, or set'):
    take(open_source(damaged), 0, 12)
  with pytest.raises(errors.UserError, match=r'cow/2\.jpg; replace'):
    list(open_source(damaged).eval_inputs('test'))


def test_a_truncated_jpeg_is_skipped_if_the_config_says_so(damaged, capsys):
  opened = open_source(damaged, skip_broken=True)
  steps = take(opened, 0, 12)
  (name,) = opened.broken_names()
  assert name.endswith('bee/7.jpg')
  assert f'skipped, cannot be decoded: {name}' in capsys.readouterr().out
  # Known from the start, as after a resume, it changes nothing.
  again = open_source(damaged, skip_broken=True)
  again.broken.update(opened.broken)
  assert_same(steps, take(again, 0, 12))
  weights = [jax.device_get(b)[2] for b, _ in opened.eval_inputs('test')]
  assert np.concatenate(weights).sum() == 6  # of 7
  assert len(opened.broken_names()) == 2


def test_resuming_meets_the_same_broken_images_again(folder, tmp_path):
  """A JPEG without its last rows fails only if the crop includes them. What a
  checkpoint knows must therefore be what was known when its batch was read,
  not what the pipeline has found since."""
  root = tmp_path / 'folder'
  shutil.copytree(folder, root)
  for i in range(5, 26):
    image = root / 'train' / CLASSES[i % 3] / f'{i}.jpg'
    data = jpeg(i, 90, 70, rng=np.random.default_rng(0))
    image.write_bytes(data[: int(0.97 * len(data))])
  options = {'skip_broken': True, 'validation': 15}
  # With this seed an image of step 1 fails at step 3, of the next epoch.
  opened = open_source(root, seed=10, **options)  # 12 images: 3 steps an epoch
  known, steps = [{**opened.broken}], []
  for step in range(7):
    steps.append(jax.device_get(opened.inputs(step, 1)))
    known.append({**opened.broken})
  opened.close()
  for first in (1, 2, 4):
    again = open_source(root, seed=10, **options)
    again.broken.update(known[first])
    assert_same(steps[first:], take(again, first, 7 - first))


def test_a_class_without_images_is_named(folder, damaged):
  for image in (damaged / 'train' / 'cow').iterdir():
    image.rename(image.with_suffix('.txt'))
  with pytest.raises(errors.UserError, match=r"train' has no image of cow"):
    open_source(damaged)


def test_folder_that_is_none(tmp_path):
  with pytest.raises(errors.UserError, match="has no directory 'train'"):
    open_source(tmp_path)
  for name in ('ant', 'bee'):
    (tmp_path / 'train' / name).mkdir(parents=True)
  with pytest.raises(errors.UserError, match="has no directory 'val'"):
    open_source(tmp_path)


@pytest.mark.parametrize(
  'change', [{'crop_pad': 4}, {'mean': (0.5,), 'std': (0.5,)}]
)
def test_what_is_for_small_images_only(folder, change):
  with pytest.raises(errors.UserError, match='give them 3 numbers and 0'):
    open_source(folder, **change)


def test_head_with_other_classes_than_the_folder(folder):
  with pytest.raises(errors.UserError, match=r'is 1000, but .* has 3 classes'):
    open_source(folder, classes=1000)


def test_truncated_record_file(tmp_path):
  tf = crops.import_tensorflow()
  path = tmp_path / 'x.tfrecord'
  with tf.io.TFRecordWriter(str(path)) as writer:
    for length in (5, 0, 300):
      writer.write(b'x' * length)
  offsets = record_files._offsets(path, path.stat().st_size)
  assert list(offsets) == [0, 21, 37]
  with pytest.raises(errors.UserError, match='record, at byte 37, should end'):
    record_files._offsets(path, path.stat().st_size - 1)


FLAGS = (
  *('--config.network.name=resnet8_digits', '--config.data.image=32'),
  *('--config.data.short_side=36', '--config.data.validation=5'),
  *('--config.batch_size=4', '--config.eval_batch_size=4'),
  *('--config.tensorboard=False', '--config.checkpoint_steps=3', *SHORT),
)


@pytest.mark.slow
def test_a_run_on_a_folder_by_one_flag(damaged, tmp_path, capsys):
  """It names a broken image; with skip_broken it says how many it skipped."""
  flags = (f'--config.data.folder={damaged}', *FLAGS)

  def refused(name, *flags):
    with pytest.raises(errors.UserError) as raised:
      run(tmp_path / name, *flags, of=mbv2_imagenet)
    return str(raised.value)

  stopped = tmp_path / 'stopped'
  message = refused('stopped', *flags)
  assert 'bee/7.jpg' in message
  assert 'set data.skip_broken=True' in message
  assert not (stopped / 'metrics.jsonl').read_text()
  flags += ('--config.data.skip_broken=True',)  # a key that may change
  run(stopped, *flags, of=mbv2_imagenet)
  stopped.rename(tmp_path / 'run')
  skipped = '2 images could not be decoded and were skipped'
  assert skipped in capsys.readouterr().out
  got = result(tmp_path / 'run')
  assert got['dataset'] == str(damaged)
  net, _ = dnal_jax.load(tmp_path / 'run')
  assert net.classes == 3
  # The same folder goes on without it, but not with another set of images.
  killed = tmp_path / 'killed'
  shutil.copytree(tmp_path / 'run', killed)
  (killed / 'result.json').unlink()
  extra = damaged / 'train' / 'ant' / '0.jpg'
  shutil.copy(extra, extra.with_name('new.jpg'))
  message = refused('killed', *flags)
  assert "'train/ant' had 10 images and has 11. Bring it back" in message
  extra.with_name('new.jpg').unlink()
  for part in ('train', 'val'):  # which changes what every label means
    (damaged / part / 'ant').rename(damaged / part / 'zebra')
  message = refused('killed', *flags)
  assert "class 0 was 'ant' and is 'bee'. Bring it back, or" in message
  assert got['class_names'] == list(CLASSES)
  message = refused('other', *flags, '--config.data.classes=9')
  assert f"data.classes is 9, but '{damaged}' has 3 classes" in message


@pytest.mark.long
def test_each_of_two_processes_meets_the_broken_images_of_its_rows(
  damaged, tmp_path, capsys
):
  flags = (f'--config.data.folder={damaged}', *FLAGS)
  flags += ('--config.data.skip_broken=True', "--config.order=('warmup',)")
  run(tmp_path / 'one', *flags, of=mbv2_imagenet)
  skipped = '2 images could not be decoded and were skipped'
  assert skipped in capsys.readouterr().out
  two = command(tmp_path / 'two', *flags, config='configs/mbv2_imagenet.py')
  (code, printed, message), (other, *_) = Processes(two, two).ended()
  assert code == other == 0, message
  assert skipped in printed
  (begun, *_), (same, *_) = (metrics(tmp_path / n) for n in ('two', 'one'))
  for key in ('loss', 'validation_loss'):
    assert begun[key] == pytest.approx(same[key], rel=1e-3)
