"""What is installed where: lists of requirements, and a wheel that is used."""

import json
import pathlib
import subprocess
import sys
import tomllib
import zipfile

from commands import ROOT
import pytest
from saved_folder import save

from dnal_jax.data import Data

PROJECT = tomllib.loads((ROOT / 'pyproject.toml').read_text())['project']


def test_requirements_are_those_of_the_package_and_its_extra():
  lines = (ROOT / 'requirements.txt').read_text().splitlines()
  listed = {line.replace('"', "'") for line in lines if line[0] != '#'}
  train = PROJECT['optional-dependencies']['train']
  assert listed == {*PROJECT['dependencies'], *train}
  assert len(listed) == len(PROJECT['dependencies']) + len(train)


@pytest.fixture(scope='module')
def wheel(tmp_path_factory):
  folder = tmp_path_factory.mktemp('wheel')
  pip = (sys.executable, '-m', 'pip', 'wheel', '--quiet', '--no-deps')
  subprocess.run((*pip, '--wheel-dir', folder, ROOT), check=True)
  (found,) = folder.glob('*.whl')
  return found


@pytest.fixture(scope='module')
def environment(wheel, tmp_path_factory):
  """bin/ of an environment with the wheel and what it requires."""
  folder = tmp_path_factory.mktemp('environment')
  subprocess.run((sys.executable, '-m', 'venv', folder), check=True)
  programs = folder / 'bin'
  subprocess.run((programs / 'pip', 'install', '--quiet', wheel), check=True)
  return programs


@pytest.mark.install
def test_a_wheel_has_all_modules_and_configs(wheel):
  names = {n for n in zipfile.ZipFile(wheel).namelist() if n.endswith('.py')}
  package = {
    str(path.relative_to(ROOT)) for path in ROOT.glob('dnal_jax/**/*.py')
  }
  configs = {f'dnal_jax/configs/{p.name}' for p in ROOT.glob('configs/*.py')}
  assert names == package | configs


@pytest.mark.install
def test_an_environment_without_extras(environment, tmp_path):
  """Loads, predicts and shows widths; names what a run needs beside it."""
  run = tmp_path / 'run'
  run.mkdir()
  digits = Data('digits', (0.3,), (0.4,), image=8, classes=10, validation=297)
  save(run, digits, [*'0123456789'])

  def dnal(*arguments, code=0):
    done = subprocess.run(
      (environment / 'dnal', *arguments),
      cwd=tmp_path,
      env={'XDG_CACHE_HOME': str(tmp_path / 'cache'), 'JAX_PLATFORMS': 'cpu'},
      capture_output=True,
      text=True,
      check=False,
    )
    assert done.returncode == code, done.stderr
    assert 'Traceback' not in done.stderr
    return done.stdout if code == 0 else done.stderr

  have = subprocess.run(
    (environment / 'python', '-m', 'pip', 'list', '--format=json'),
    capture_output=True,
    check=True,
  ).stdout
  names = {package['name'].lower() for package in json.loads(have)}
  assert not names & {'tensorflow', 'tensorflow-cpu', 'clu', 'scikit-learn'}
  size = sum(
    file.stat().st_blocks * 512
    for file in pathlib.Path(environment).parent.rglob('*')
    if not file.is_symlink()
  )
  assert size < 1e9

  image = (
    'import numpy as np, dnal_jax, PIL.Image\n'
    'pixels = np.arange(64, dtype=np.uint8).reshape(8, 8)\n'
    "PIL.Image.fromarray(pixels).save('digit.png')\n"
    "print(dnal_jax.load('run').predict(pixels[..., None]).top(1)[0][0][0])"
  )
  best = subprocess.run(
    (environment / 'python', '-c', image),
    cwd=tmp_path,
    capture_output=True,
    text=True,
    check=True,
  ).stdout.strip()
  predicted = json.loads(dnal('predict', 'run', 'digit.png', '--json'))
  assert predicted['top'][0]['class'] == best
  assert 'gated channels' in dnal('summary', 'run')
  assert 'gated channels' in dnal('summary', '--config=mbv2_imagenet')
  lacking = dnal('train', '--config=quickstart', '--workdir=new', code=2)
  assert 'scikit-learn' in lacking
  assert "pip install 'dnal_jax[train]'" in lacking
  assert not (tmp_path / 'new').exists()
