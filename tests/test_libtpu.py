"""A machine without a TPU hears nothing about TPUs, even with libtpu."""

import importlib.util
import os
import subprocess
import sys

from commands import ROOT
import pytest

from dnal_jax.tpu import environment


@pytest.mark.skipif(
  importlib.util.find_spec('libtpu') is None,
  reason="libtpu is not installed: pip install 'jax[tpu]'",
)
@pytest.mark.parametrize('first', ['jax', 'dnal_jax'])
def test_process_prints_nothing_to_standard_error(first):
  """Whichever of the two is imported first, as in a notebook."""
  inherited = {
    name: value
    for name, value in os.environ.items()
    if not name.startswith(('TPU_', 'JAX_'))
  }
  program = f'import {first}; import dnal_jax, jax; print(jax.devices())'
  done = subprocess.run(
    (sys.executable, '-c', program),
    cwd=ROOT,
    # While another process has libtpu loaded, it would be silent anyway.
    env={**inherited, 'ALLOW_MULTIPLE_LIBTPU_LOAD': '1'},
    capture_output=True,
    text=True,
    check=False,
  )
  assert done.returncode == 0, done.stderr
  assert 'Device' in done.stdout
  assert done.stderr == ''


@pytest.fixture
def devices(tmp_path, monkeypatch):
  """A folder in place of /dev."""
  monkeypatch.setattr(environment, '_DEVICES', (f'{tmp_path}/accel*',))
  return tmp_path


@pytest.mark.parametrize(
  'environ',
  [
    {},
    {'JAX_PLATFORMS': 'cpu'},
    {'TPU_LIBRARY_PATH': '/libtpu.so', 'TPU_SKIP_MDS_QUERY': '1'},
  ],
)
def test_silent_without_a_tpu(environ, devices):
  after = dict(environ)
  environment.silence_libtpu(after)
  assert after == {**environ, **environment.WITHOUT_TPU}


@pytest.mark.parametrize(
  'environ',
  [
    {'TPU_WORKER_HOSTNAMES': 'a,b'},
    {'TPU_NAME': 'mine'},
    {'JAX_FORCE_TPU_INIT': '1'},
    {'JAX_PLATFORMS': 'tpu,cpu'},
  ],
)
def test_what_the_user_has_set_stays(environ, devices):
  after = dict(environ)
  environment.silence_libtpu(after)
  assert after == environ


def test_a_machine_with_a_tpu_is_left_alone(devices):
  (devices / 'accel0').touch()
  environ = {}
  environment.silence_libtpu(environ)
  assert environ == {}
