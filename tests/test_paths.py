"""Paths that a user names: URLs, ~, and users without a home directory."""

import dataclasses
import os
import pathlib
import shutil
import subprocess

from commands import ROOT, SHORT, cannot_unshare, command, run_here
from in_process import config
import pytest

import dnal_jax
from dnal_jax import errors, paths, prepare, status, summary
from dnal_jax.config import parse_config
from dnal_jax.data import splits, tfds_sets
import dnal_jax.main

BUCKET = 'gs://bucket/run1'
CONFIG = '--config=configs/quickstart.py'
DATA = parse_config(config()).data


@pytest.fixture
def home(tmp_path, monkeypatch):
  monkeypatch.setenv('HOME', str(tmp_path))
  return tmp_path


def test_local_paths(home):
  for given in ('a/b', '/a/b', './~', 'a~b', 'a:b'):
    assert paths.local('key', given) == pathlib.Path(given)
  for given in ('~/a', pathlib.Path('~/a')):
    assert paths.local('key', given) == home / 'a'
  for given in (BUCKET, pathlib.Path(BUCKET), 's3://b', 'file:///a'):
    with pytest.raises(errors.UserError, match=r"^key is '\w+:.*gcsfuse"):
      paths.local('key', given)
  with pytest.raises(errors.UserError, match=r"key is '~nobody-here/a'.*HOME"):
    paths.local('key', '~nobody-here/a')


@pytest.mark.parametrize(
  ('module', 'flags', 'key'),
  [
    (dnal_jax.main, (CONFIG, *SHORT), '--workdir'),
    (status, (), None),
    (summary, (), '--architecture'),
    (summary, (), None),
    (prepare, ('--dataset=imagenet2012', '--data_dir=.'), '--manual_dir'),
  ],
)
def test_urls_are_refused_before_anything_is_made(module, flags, key):
  before = sorted(ROOT.iterdir())
  ended = run_here(module, *flags, f'{key}={BUCKET}' if key else BUCKET)
  assert ended.code == 2
  assert f"error: {key or 'DIR'} is '{BUCKET}', a URL" in ended.err
  assert sorted(ROOT.iterdir()) == before


def test_urls_in_python():
  with pytest.raises(errors.UserError, match=f"workdir is '{BUCKET}', a URL"):
    dnal_jax.load(BUCKET)
  folder = dataclasses.replace(DATA, folder=BUCKET)
  with pytest.raises(errors.UserError, match=r"data\.folder is 'gs://.*a URL"):
    splits.classes(folder)
  assert tfds_sets.root('cifar10', 'gs://bucket/tfds') == 'gs://bucket/tfds'


def test_a_tilde_is_the_home_directory(home, monkeypatch):
  """For shells leave that of --workdir=~/run alone."""
  for name in ('ant', 'cat'):
    (home / 'images/train' / name).mkdir(parents=True)
  assert splits.classes(dataclasses.replace(DATA, folder='~/images')) == 2
  assert tfds_sets.root('cifar10', '~/images') == f'{home}/images'
  monkeypatch.setenv('TFDS_DATA_DIR', '~/images')
  assert tfds_sets.root('cifar10', None) == f'{home}/images'
  (home / 'file').touch()
  ended = run_here(dnal_jax.main, CONFIG, '--workdir=~/file')
  assert f"'{home}/file' cannot be written" in ended.err
  shutil.copy(ROOT / 'configs/quickstart.py', home / 'mine.py')
  assert run_here(summary, '--config=~/mine.py:baseline').code == 0
  assert f"'{home}/none'" in run_here(summary, '--architecture=~/none').err
  assert f"'{home}/none'" in run_here(status, '~/none').err


def test_a_user_without_a_home_directory(tmp_path):
  """Has no cache, and is asked where the data is."""
  as_another = ('unshare', '--user', '--map-user=12345')
  why = cannot_unshare(*as_another)
  if why:
    pytest.skip(f'needs a user without a home directory: {why}')
  unset = 'HOME', 'XDG_CACHE_HOME', 'TFDS_DATA_DIR', 'JAX_COMPILATION_CACHE_DIR'
  environment = {k: v for k, v in os.environ.items() if k not in unset}
  fashion = f'{ROOT}/configs/vgg16_fashion_mnist.py'
  done = subprocess.run(
    (*as_another, *command('run', config=fashion)),
    cwd=tmp_path,
    env={**environment, 'PYTHONPATH': str(ROOT)},
    capture_output=True,
    text=True,
    check=False,
  )
  assert done.returncode == 2, done.stderr
  message = done.stderr.splitlines()[-1]
  assert message.startswith('error: TFDS_DATA_DIR is not set; its default is')
  assert 'set HOME, or name the path' in message
  assert done.stdout == ''
  assert not list(tmp_path.iterdir())
