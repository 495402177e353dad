"""The fast tests under a newer Python, with the newest packages allowed."""

import os
import pathlib
import re
import shutil
import subprocess
import sys

from commands import ROOT
import pytest

FAST = 'not slow and not long and not install'


def newer_python():
  """The newest Python of those supported that is installed beside this one, by
  pyenv or on PATH."""
  pyenv = pathlib.Path(os.environ.get('PYENV_ROOT', '~/.pyenv')).expanduser()
  for name in ('3.13', '3.12'):
    installed = sorted(pyenv.glob(f'versions/{name}.*/bin/python'))[-1:]
    for found in (*installed, shutil.which(f'python{name}')):
      if found and not sys.version.startswith(name):
        ended = subprocess.run(
          (found, '-c', ''), capture_output=True, check=False
        )
        if ended.returncode == 0:  # not a shim of a Python that is not chosen
          return str(found)
  return None


@pytest.mark.long
@pytest.mark.skipif(not newer_python(), reason='no Python 3.12 or 3.13 found')
def test_a_newer_python_and_the_newest_packages(tmp_path):
  environment = tmp_path / 'environment'
  python = environment / 'bin/python'
  subprocess.run((newer_python(), '-m', 'venv', environment), check=True)
  install = (python, '-m', 'pip', 'install', '--quiet', '--upgrade')
  subprocess.run((*install, f'{ROOT}[dev]'), check=True)
  done = subprocess.run(
    (python, '-m', 'pytest', '-m', FAST),
    cwd=ROOT,
    env={k: v for k, v in os.environ.items() if 'PYTEST' not in k},
    capture_output=True,
    text=True,
    check=False,
  )
  versions = 'import sys, jax; print(sys.version, jax.__version__)'
  subprocess.run((python, '-c', versions), check=True)
  shutil.rmtree(environment)  # gigabytes
  assert done.returncode == 0, done.stdout[-20_000:]
  assert re.search(r'^[0-9]{3,} passed', done.stdout, re.M), done.stdout
