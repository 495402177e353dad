"""Starts and steps stay fast, and benchmarks run; no times are compared."""

import json
import os
import subprocess
import sys

from commands import ROOT, command
import pytest


def run_with(environment, workdir):
  """The shortest run of the demo's network, with environment variables."""
  flags = (
    "--config.order=('baseline',)",
    '--config.stages.baseline.epochs=1',
    '--config.network.width=0.25',
  )
  inherited = {k: v for k, v in os.environ.items() if not k.startswith('JAX_')}
  return subprocess.run(
    command(workdir, *flags),
    cwd=ROOT,
    env={**inherited, **environment},
    capture_output=True,
    text=True,
    check=False,
  )


@pytest.mark.slow
def test_compiled_programs_are_cached_for_the_next_start(tmp_path):
  cache = tmp_path / 'cache' / 'dnal_jax' / 'compiled'
  environment = {'XDG_CACHE_HOME': str(tmp_path / 'cache')}

  def steps():
    # Whether other programs are cached depends on their compile time.
    return {file.name for file in cache.glob('*steps*-cache')}

  assert run_with(environment, tmp_path / 'a').returncode == 0
  programs = steps()
  assert programs
  assert run_with(environment, tmp_path / 'b').returncode == 0
  assert steps() == programs
  weights = 'model/variables.safetensors'
  a, b = ((tmp_path / name / weights).read_bytes() for name in 'ab')
  assert a == b


@pytest.mark.long
def test_a_cache_that_cannot_be_written_is_no_error(tmp_path):
  (tmp_path / 'file').write_text('not a folder')
  done = run_with({'XDG_CACHE_HOME': str(tmp_path / 'file')}, tmp_path / 'run')
  assert done.returncode == 0, done.stderr
  assert 'Traceback' not in done.stderr


@pytest.mark.slow
def test_benchmarks_import_from_any_folder(tmp_path):
  need_torch = {'input_pipeline', 'torch_networks'}
  names = {file.stem for file in (ROOT / 'benchmarks').glob('*.py')}
  names = sorted(names - need_torch)
  program = (
    'import importlib, sys\n'
    f'sys.path[0] = {str(ROOT / "benchmarks")!r}\n'
    f'for name in {names}: importlib.import_module(name)\n'
  )
  done = subprocess.run(
    [sys.executable, '-c', program],
    cwd=tmp_path,
    env={k: v for k, v in os.environ.items() if k != 'PYTHONPATH'},
    capture_output=True,
    text=True,
    check=False,
  )
  assert done.returncode == 0, done.stderr


@pytest.mark.slow
def test_first_step_needs_no_tensorflow():
  """The benchmark exits with an error otherwise."""
  done = subprocess.run(
    [sys.executable, 'benchmarks/startup.py', '1'],
    cwd=ROOT,
    capture_output=True,
    text=True,
    check=False,
  )
  assert done.returncode == 0, done.stderr
  found = json.loads(done.stdout.splitlines()[-1])['startup']
  assert set(found) == {'cold', 'warm'}


@pytest.mark.long
def test_train_steps_are_timed(tmp_path):
  """Without PyTorch, which the tests do not install."""
  file = tmp_path / 'out.json'
  flags = ('--networks=resnet8_digits', '--image=8', '--batch=8', '--torch=')
  flags += ('--rounds=1', '--steps=1', '--masked', '--multiples', '1', '4')
  flags += ('--stages=finetune 25,masked',)
  done = subprocess.run(
    [sys.executable, 'benchmarks/train_step.py', *flags, f'--json={file}'],
    cwd=ROOT,
    env={**os.environ, 'PYTHONPATH': str(ROOT)},
    capture_output=True,
    text=True,
    check=False,
  )
  assert done.returncode == 0, done.stderr
  rows = json.loads(file.read_text())['train_step']
  assert [row['stage'] for row in rows] == [
    *('warmup', 'finetune 25%', 'finetune 25% x4', 'masked')
  ]
  by_stage = {row['stage']: row for row in rows}
  assert by_stage['masked']['macs'] == by_stage['warmup']['macs']
  assert by_stage['finetune 25%']['macs, fewer'] == pytest.approx(4, rel=0.15)


def test_gpu_suite_reports_the_part_that_failed(tmp_path):
  """With a stand-in for Python that writes the files of every part and fails in
  one of them; the parts themselves need PyTorch."""
  stand_in = tmp_path / 'python'
  stand_in.write_text(f"""#!/bin/sh
case $1 in -) exec {sys.executable} "$@" ;; esac
for argument; do
  case $argument in
    --json=*) echo '{{"done": 1}}' >"${{argument#--json=}}" ;;
    --workdir=*)
      mkdir -p "${{argument#--workdir=}}"
      echo '{{"done": 2}}' >"${{argument#--workdir=}}/result.json" ;;
  esac
done
case $1 in *search_cost.py) exit 3 ;; esac
""")
  stand_in.chmod(0o755)
  out = tmp_path / 'out.json'
  environment = {**os.environ, 'PYTHON': str(stand_in), 'TINY': '1'}
  done = subprocess.run(
    ['benchmarks/gpu.sh', str(out)], cwd=ROOT, env=environment, check=False
  )
  assert done.returncode == 1
  found = json.loads(out.read_text())
  assert found.pop('search_cost') == {'failed': 3}
  assert found == {
    'device_data': {'done': 1},
    'fashion_mnist_1e-3': {'done': 2},
    'fashion_mnist_3e-4': {'done': 2},
    'resnet50': {'done': 1},
    'resnet56': {'done': 1},
    'resnet56_compile': {'done': 1},
  }
