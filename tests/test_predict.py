"""What is predicted for images: as the run's evaluation, on any image."""

import json
import re
import shutil
import subprocess
import sys

from commands import ROOT, result, run_here
import jax
import numpy as np
from PIL import Image
import pytest
from saved_folder import evaluated, save
from torchvision_crops import torchvision_centre

import dnal_jax
from dnal_jax import errors, predict
from dnal_jax.data import Data, memory, sources
from dnal_jax.workdir import saved_model

NAMES = ['zero', *'12345678', 'nine']
# Digits have 8x8 pixels: one row and column of zeros on two sides, two on the
# others.
PADDED = Data(
  *('digits', (0.3, 0.4, 0.5), (0.4, 0.3, 0.2)),
  image=11,
  classes=10,
  validation=297,
)
VERSION_1 = ROOT / 'tests/golden/version_1/finished'


@pytest.fixture(scope='session')
def digits():
  """The test images [N, 8, 8, 1] uint8 as scikit-learn has them, and labels."""
  arrays = memory._digits()
  return arrays['test_images'], arrays['test_labels']


@pytest.fixture(scope='module')
def folder(tmp_path_factory):
  folder = tmp_path_factory.mktemp('saved')
  save(folder, PADDED, NAMES)
  return folder


@pytest.fixture(scope='module')
def model(folder):
  return dnal_jax.load(folder)


def test_small_images_are_padded_as_in_the_evaluation(model, digits):
  """And a gray channel becomes three: the same logits on every image."""
  source = sources.open_source(
    PADDED, seed=0, batch_size=100, eval_batch_size=100
  )
  want = evaluated(model, source, 'test')
  got = model.predict(digits[0])
  np.testing.assert_array_equal(got.logits.argmax(1), want.argmax(1))
  np.testing.assert_allclose(got.logits, want, atol=1e-4 * abs(want).max())
  np.testing.assert_allclose(got.probabilities, jax.nn.softmax(want), atol=1e-4)


def test_predictions_name_the_classes(model, digits):
  got = model.predict(digits[0][:40])  # two batches
  assert got.probabilities.shape == got.logits.shape == (40, 10)
  assert got.class_names == tuple(NAMES)
  for top, shares in zip(got.top(3), got.probabilities, strict=True):
    best = np.argsort(-shares)[:3]
    assert top == [(NAMES[i], pytest.approx(float(shares[i]))) for i in best]
  assert [len(top) for top in got.top(20)] == [10] * 40
  for few in (digits[0][3], digits[0][3:4], [digits[0][3]]):
    one = model.predict(few)
    np.testing.assert_allclose(one.logits, got.logits[3:4], atol=1e-4)
  assert model.predict(iter(())).top() == []
  assert model.predict(digits[0][:0]).logits.shape == (0, 10)
  of_jax = model.predict(jax.numpy.asarray(digits[0][:2]))
  np.testing.assert_allclose(of_jax.logits, got.logits[:2], atol=1e-4)


def test_the_model_is_also_a_pair(model, digits):
  net, variables = model
  assert net is model.net
  assert variables is model.variables
  inputs = np.stack([model.preprocessing(image) for image in digits[0][:4]])
  normalised = (inputs / 255 - PADDED.mean) / PADDED.std
  logits = jax.jit(net.apply)(variables, normalised.astype(np.float32))
  got = model.predict(digits[0][:4]).logits
  np.testing.assert_allclose(logits, got, atol=1e-4 * abs(got).max())


def test_it_is_shown_in_a_line(model, folder):
  params = sum(a.size for a in jax.tree.leaves(model.variables['params']))
  shown = f"SavedModel('{folder}': Vgg, {params:,} params, images 11x11x3, 10"
  assert repr(model).startswith(shown)
  with pytest.raises(errors.UserError, match=r'for files use .*predict'):
    model.predict('photo.jpg')


def test_images_of_any_size(model):
  """Where the run pads, larger ones are resized, and the centre is cut out."""
  rng = np.random.default_rng(0)
  images = [
    rng.integers(0, 256, shape, np.uint8)
    for shape in (
      (11, 11, 3),
      (1, 1, 1),
      (12, 11, 3),
      (50, 20, 1),
      (11, 400, 3),
    )
  ]
  inputs = [model.preprocessing(image) for image in images]
  assert {image.shape for image in inputs} == {(11, 11, 3)}
  np.testing.assert_array_equal(inputs[0], images[0])
  assert inputs[1].sum() == 3 * images[1].sum()
  centre = torchvision_centre(Image.fromarray(images[3][..., 0]), 11, 11)
  assert abs(inputs[3].astype(int) - centre).max() <= 1
  assert len(model.predict(images).top()) == 5


@pytest.mark.parametrize(
  ('image', 'message'),
  [
    (np.zeros((8, 8, 3)), r'float64; give pixels as uint8.*round\(255 \* imag'),
    (np.zeros((2, 8, 8, 3), np.float32), 'images are float32; give'),
    (np.zeros((8, 8, 3), int), r'int64; give pixels .*astype\(np.uint8\)'),
    (np.zeros((8, 8), np.uint8), r'has the shape \[8, 8\]; .*image\[\.\.\., N'),
    (np.zeros((1, 2, 8, 8, 3), np.uint8), r'has the shape \[1, 2, 8, 8, 3\]'),
    (np.zeros((8, 0, 3), np.uint8), r'has the shape \[8, 0, 3\]'),
    (np.zeros((8, 8, 4), np.uint8), 'has 4 channels, and the network reads 3'),
    ([np.zeros((8, 8, 3), np.uint8), None], 'images are object; give'),
  ],
)
def test_what_cannot_be_pixels_is_refused(image, message, model):
  with pytest.raises(errors.UserError, match=message):
    model.predict(image)


# Folders of version 1.


def test_version_1_is_prepared_as_its_config_says(digits):
  model = dnal_jax.load(VERSION_1)
  images, labels = digits
  hits = model.predict(images).logits.argmax(1) == labels
  assert hits.mean() == pytest.approx(result(VERSION_1)['test_top1'], abs=1e-9)
  assert model.class_names is None
  ((best, *_),) = model.predict(images[0]).top()
  assert best[0] in set('0123456789')


@pytest.mark.parametrize(
  ('change', 'message'),
  [
    (lambda data: data.pop('mean'), r"\('mean'\)"),
    (lambda data: data.update(std=[0]), r'\(std is \[0\]; it must list 1 numb'),
    (lambda data: data.update(name='flowers', short_side=3), 'short_side is 3'),
    (None, r"cannot read .*config\.json' \(No such file"),
  ],
  ids=range(4),
)
def test_version_1_says_what_it_lacks(change, message, digits, tmp_path):
  folder = shutil.copytree(VERSION_1, tmp_path / 'run')
  path = folder / 'config.json'
  if change is None:
    path.unlink()
  else:
    value = json.loads(path.read_text())
    change(value['config']['data'])
    path.write_text(json.dumps(value))
  model = dnal_jax.load(folder)  # all the same
  assert model.net.classes == 10
  with pytest.raises(errors.UserError, match=message) as raised:
    model.predict(digits[0])
  assert f"'{folder}' is of an earlier version" in str(raised.value)
  assert 'bring back the config.json of the run, or' in str(raised.value)


# The command.


@pytest.fixture
def files(tmp_path, digits):
  """Forty digits, of which one is broken, and other files."""
  for i, image in enumerate(digits[0][:40]):
    path = tmp_path / 'images' / str(i % 2) / f'{i:02}.png'
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(image[..., 0]).save(path)
  path.write_bytes(path.read_bytes()[:60])
  (tmp_path / 'images/notes.txt').write_text('no image')
  (tmp_path / 'images/.hidden.png').write_bytes(b'')
  return tmp_path / 'images'


def test_the_command_names_five_classes_of_each_file(folder, files, digits):
  got = run_here(predict, folder, files / '0')
  assert (got.code, got.err) == (0, '')
  lines = got.out.splitlines()
  assert len(lines) == 20
  want = dnal_jax.load(folder).predict(digits[0][:40:2]).top(5)
  for i, (line, top) in enumerate(zip(lines, want, strict=True)):
    shares = ', '.join(f'{name} {share:.2%}' for name, share in top)
    assert line == f'{files}/0/{2 * i:02}.png: {shares}'
  as_json = run_here(predict, folder, files / '0', '--json').out.splitlines()
  for line, text, top in zip(as_json, lines, want, strict=True):
    value = json.loads(line)
    assert text.startswith(value['file'])
    rows = [tuple(row.values()) for row in value['top']]
    assert rows == [(name, pytest.approx(share)) for name, share in top]
    assert value['top'][0].keys() == {'class', 'probability'}


def test_broken_files_are_named_and_the_others_classified(folder, files):
  got = run_here(predict, folder, files)
  assert got.code == 2
  names = re.findall(r'^(\S+): ', got.out, re.M)
  assert names == [*map(str, sorted(files.glob('?/*'))[:-1])]
  skipped, error = got.err.splitlines()
  assert skipped.startswith(f"skipped: '{files}/1/39.png' cannot be decoded (")
  assert error.startswith('error: 1 of 40 files cannot be read; ')
  (files / '1/39.png').write_text('no image')
  got = run_here(predict, folder, files / '1/39.png')
  assert (got.code, got.out) == (2, '')
  assert 'cannot be decoded (no known image format)' in got.err


def test_files_are_named_in_many_ways(folder, files):
  """A file of any ending, a pattern; what is none does not stop the others."""
  (files / '0/00.png').rename(files / 'digit')
  got = run_here(predict, folder, files / 'digit', f'{files}/1/0[13].png')
  names = re.findall(rf'^{files}/(\S+): ', got.out, re.M)
  assert (got.code, names) == (0, ['digit', '1/01.png', '1/03.png'])
  for name, message in (
    (f'{files}/x.png', 'does not exist'),
    (f'{files}/*.gif', 'is no image file, no folder with images'),
  ):
    got = run_here(predict, folder, name)
    assert (got.code, got.out) == (2, '')
    assert f"'{name}' {message}" in got.err
    got = run_here(predict, folder, name, files / 'digit')
    assert (got.code, got.out.find(f'{files}/digit: ')) == (2, 0)
    assert got.err.startswith(f"skipped: '{name}' {message}")
    assert 'error: 1 of 2 files cannot be read; ' in got.err
  for arguments, message in (
    ((folder,), 'DIR FILE...'),
    ((files / 'digit', folder), 'is a file; the folder of a run comes first'),
    ((files, files / 'digit'), 'architecture.json'),
  ):
    got = run_here(predict, *arguments)
    assert (got.code, got.out) == (2, '')
    assert message in got.err


def test_the_command_on_a_folder_of_version_1(files):
  got = run_here(predict, VERSION_1, files / '0/00.png')
  assert got.code == 0
  assert re.search(r'00\.png: \d \d+\.\d\d%, \d ', got.out)
  assert 'classes are shown by their numbers, from 0' in got.err


WITHOUT = """
import sys
sys.modules['tensorflow'] = None
import dnal_jax
dnal_jax.load(sys.argv[1])
assert not {'optax', 'dnal_jax.training', 'PIL'} & {*sys.modules}
sys.argv[1:1] = ['predict']
from dnal_jax import __main__
__main__.main()
"""


def test_neither_tensorflow_nor_training_code_is_needed(folder, files):
  """By `dnal predict`; loading does not even need Pillow."""
  done = subprocess.run(
    (sys.executable, '-c', WITHOUT, folder, files / '0/00.png'),
    cwd=ROOT,
    capture_output=True,
    text=True,
    check=False,
  )
  assert (done.returncode, done.stderr) == (0, '')
  assert done.stdout.startswith(f'{files}/0/00.png: ')


def test_batches_are_few_sizes(model, digits, monkeypatch):
  """A program is compiled for each."""
  sizes = []
  logits = saved_model._logits

  def counted(net, preprocessing, variables, images):
    sizes.append(len(images))
    return logits(net, preprocessing, variables, images)

  monkeypatch.setattr(saved_model, '_logits', counted)
  for images in (1, 2, 3, 33, 70):
    model.predict(digits[0][:images])
  assert sizes == [1, 2, 4, 32, 32, 32, 32, 32]
