"""Streamed images: exact crops, of the right images, at every step."""

import dataclasses
import io
import shutil

from commands import SHORT, Processes, command, metrics, result
from in_process import run
import jax
import numpy as np
from photographs import jpeg, photographs
from PIL import Image
import pytest
from scipy import stats

from configs import mbv2_imagenet
import dnal_jax
from dnal_jax import errors
from dnal_jax.data import Data, crops, records, sources
from dnal_jax.data.streamed import StreamedSource

pytestmark = pytest.mark.xdist_group('streamed')  # one process imports TF
CLASSES = ('ant', 'bee', 'cow')
FOLDER = Data(
  name='',
  mean=(0.5,) * 3,
  std=(0.5,) * 3,
  image=32,
  classes=3,
  validation=5,
  flip=True,
  short_side=36,
)


def encoded(image, kind='PNG'):
  file = io.BytesIO()
  image.save(file, kind)
  return file.getvalue()


def sizes(rng, low, high):
  return (int(n) for n in rng.integers(low, high, 2))


@pytest.fixture(scope='module')
def folder(tmp_path_factory):
  """26 photographs to train, 7 to test; one gray, one CMYK, one PNG with an
  alpha channel, some smaller than the crop."""
  root = tmp_path_factory.mktemp('folder')
  rng = np.random.default_rng(0)
  for part, images in (('train', 26), ('val', 7)):
    for i in range(images):
      directory = root / part / CLASSES[i % 3]
      directory.mkdir(parents=True, exist_ok=True)
      mode = {3: 'L', 4: 'CMYK'}.get(i, 'RGB')
      data = jpeg(i, *sizes(rng, 20, 90), rng=rng, mode=mode)
      (directory / f'{i}.jpg').write_bytes(data)
  image = photographs()[0].resize((50, 40)).convert('RGBA')
  image.putalpha(90)
  image.save(root / 'train' / 'ant' / 'alpha.png')
  return root


def open_source(folder, *, seed=0, batch_size=4, host=(0, 1), **changes):
  data = dataclasses.replace(FOLDER, folder=str(folder), **changes)
  return StreamedSource.open(
    data, seed=seed, batch_size=batch_size, eval_batch_size=4, host=host
  )


def take(source, first_step, steps):
  """The inputs of so many consecutive steps, as numpy."""
  numbers = range(first_step, first_step + steps)
  taken = [jax.device_get(source.inputs(step, 1)) for step in numbers]
  source.close()
  return taken


def assert_same(a, b):
  jax.tree.map(np.testing.assert_array_equal, a, b)


# Crops.


def torchvision_centre(image, size, short_side):
  """Resize, then CenterCrop, on a PIL image."""
  image = image.convert('RGB')
  short = min(image.size)
  width, height = (short_side * n // short for n in image.size)
  image = image.resize((width, height), Image.Resampling.BILINEAR)
  left, top = round((width - size) / 2), round((height - size) / 2)
  return np.asarray(image.crop((left, top, left + size, top + size)))


def test_evaluation_crops_are_pils():
  """50 photographs of many sizes, modes and formats: no channel of any pixel
  differs by more than 1 of 255 levels, on average by less than 0.25."""
  tf = crops.import_tensorflow()
  crop = tf.function(
    lambda data: crops.centre_crop(data, size=224, short_side=256),
    input_signature=[tf.TensorSpec((), tf.string)],
  )
  rng = np.random.default_rng(0)
  for i in range(50):
    mode = {0: 'L', 1: 'CMYK'}.get(i % 7, 'RGB')
    data = jpeg(i, *sizes(rng, 100, 640), rng=rng, mode=mode)
    if i % 10 == 9:
      image = Image.open(io.BytesIO(data)).convert('RGBA')
      image.putalpha(i)
      data = encoded(image)
    got = crop(data).numpy().astype(int)
    want = torchvision_centre(Image.open(io.BytesIO(data)), 224, 256)
    difference = abs(got - want)
    assert difference.max() <= 1, i
    assert difference.mean() < 0.25, i


def torchvision_window(rng, height, width, scale):
  """RandomResizedCrop.get_params, from its documentation."""
  for _ in range(10):
    area = height * width * rng.uniform(*scale)
    aspect = np.exp(rng.uniform(np.log(3 / 4), np.log(4 / 3)))
    w, h = round(np.sqrt(area * aspect)), round(np.sqrt(area / aspect))
    if 0 < w <= width and 0 < h <= height:
      top = rng.integers(0, height - h + 1)
      return top, rng.integers(0, width - w + 1), h, w
  if width / height < 3 / 4:
    w, h = width, round(width / (3 / 4))
  elif width / height > 4 / 3:
    w, h = round(height * (4 / 3)), height
  else:
    w, h = width, height
  return (height - h) // 2, (width - w) // 2, h, w


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
      encoded(image), draws, size=128, scale=(0.08, 1.0), flip=True
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


# The order of the images.


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


# What is broken.


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
  (tmp_path / 'train' / 'ant').mkdir(parents=True)
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
  offsets = records._offsets(path, path.stat().st_size)
  assert list(offsets) == [0, 21, 37]
  with pytest.raises(errors.UserError, match='record, at byte 37, should end'):
    records._offsets(path, path.stat().st_size - 1)


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
  # Each of two processes meets the broken images of its own rows.
  two = command(
    tmp_path / 'two',
    *flags,
    "--config.order=('warmup',)",
    config='configs/mbv2_imagenet.py',
  )
  (code, printed, message), (other, *_) = Processes(two, two).ended()
  assert code == other == 0, message
  assert skipped in printed
  (begun, *_), (same, *_) = (metrics(tmp_path / n) for n in ('two', 'run'))
  for key in ('loss', 'validation_loss'):
    assert begun[key] == pytest.approx(same[key], rel=1e-3)
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
  assert 'had 22 images' in message
  assert 'now it has 23' in message
  message = refused('other', *flags, '--config.data.classes=9')
  assert f"data.classes is 9, but '{damaged}' has 3 classes" in message
