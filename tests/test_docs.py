"""Every example of the README and of docs/ works, or is in a list that says why
it is not run here; `test_docs_text.py` is about the rest of their text."""

import contextlib
import importlib
import json
import os
import pathlib
import re
import shutil
import subprocess
import sys

from commands import ROOT, run_here
from examples import (
  all_commands,
  all_examples,
  check_command,
  filled_in,
)
from in_process import config
from PIL import Image
import pytest

from dnal_jax.models import registry

GOLDEN = ROOT / 'tests' / 'golden' / 'version_1' / 'finished'

# Commands by a pattern. Each command of the pages matches one, in one of these
# tables, and each pattern some command.
HERE = (  # executed by `test_commands_that_need_no_time`
  r'python -m dnal_jax\.predict ',
  r'python -m dnal_jax\.status ',
  r'python -m dnal_jax\.summary (runs/demo|DIR)',
  r'python -m dnal_jax\.main --config=configs/quickstart\.py --list-overrides',
)
LONG = (  # executed by `make test-long`
  r'python -m dnal_jax\.summary --(network|config)=',
  r'python -m dnal_jax\.main --config=configs/quickstart\.py --workdir=runs/sh',
  r'python -m dnal_jax\.main --config=configs/quickstart\.py .*=runs/taylor ',
  r'python -m dnal_jax\.main --config=configs/quickstart\.py.* --config\.seed=',
  r'CONFIG=configs/quickstart\.py WORKDIR=\S+ launch/sweep\.sh ',
)
ELSEWHERE = {  # executed by other tests
  r'make demo': 'test_demo.py',
  r'python -m dnal_jax\.main --config=configs/quickstart\.py '
  r'--config\.target\.macs=0\.1 --uniform --workdir=runs/demo': 'test_demo.py',
  r'python -m dnal_jax\.main --config=residual\.py ': 'test_own_network.py',
  r'python -m dnal_jax\.main .*--config\.init_from=': 'test_target.py',
  r'python -m dnal_jax\.prepare .*imagenet2012': 'test_imagenet.py',
  r'python -m dnal_jax\.compare ': 'test_compare.py',
  r'python -m dnal_jax\.main .* --workdir=runs/taught': 'test_distill.py',
  r'python -m dnal_jax\.dryrun ': 'test_dryrun.py',
  r'.* launch/tpu_vm\.sh': 'test_launch_tpu_vm.py',
  r'.* launch/gke\.sh': 'test_launch_gke.py',
  r'.* sbatch launch/slurm\.sh': 'test_launch.py',
  r'CONFIG=configs/NAME\.py .* launch/sweep\.sh': 'test_launch.py',
}
NOT_HERE = {
  r'make test(-long)?$': 'is what runs this test',
  r'(pip install|git clone) ': 'needs a network',
  r'(cd|export) ': 'sets the state of a shell',
  r'python -m dnal_jax\.main --config=configs/\w+_cifar10\.py': (
    'needs CIFAR-10, and a GPU in practice'
  ),
  r'python -m dnal_jax\.main --config=configs/\w+_fashion_mnist\.py': (
    'needs Fashion-MNIST, and 7 to 21 minutes'
  ),
  r'python -m dnal_jax\.main --config=configs/\w+_imagenet\.py': (
    'needs ImageNet or a large folder, and an accelerator;'
    ' test_imagenet.py trains on small ones'
  ),
  r'(PYTHONPATH=\. )?(python )?benchmarks/': (
    'measures for minutes to hours; PyTorch, or a GPU'
  ),
}
# Python examples, by a string in them, that are compiled only, by default: they
# train, or `test_demo.py` executes them with the network of the demo.
LONG_PYTHON = ('train.run(', 'memory.load(data).test')


def matching(command, patterns):
  return [pattern for pattern in patterns if re.match(pattern, command)]


@pytest.fixture
def folder(tmp_path):
  """A place with a finished run in runs/demo and DIR, a folder of two classes,
  and image files."""
  run = tmp_path / 'runs' / 'demo'
  shutil.copytree(GOLDEN, run)
  of_now = {'config': config('--config.network.width=0.25')}
  (run / 'config.json').write_text(json.dumps(of_now))
  (tmp_path / 'DIR').symlink_to(run)
  for file in ('digit.png', 'photo.jpg'):
    Image.new('L', (8, 8)).save(tmp_path / file)
  for name in ('train/ant', 'train/bee', 'val/ant', 'val/bee'):
    (tmp_path / 'images' / name).mkdir(parents=True)
  for name in ('ant', 'bee'):
    (tmp_path / 'FOLDER' / 'train' / name).mkdir(parents=True)
  return tmp_path


def test_every_command_is_executed_or_says_why_not():
  tables = (*HERE, *LONG, *ELSEWHERE, *NOT_HERE)
  for command, example in all_commands().items():
    found = matching(command, tables)
    assert found, f'{example}: in no table of this test: {command}'
    assert len(found) == 1, f'{example}: {command}: {found}'
  for pattern in tables:
    used = any(re.match(pattern, command) for command in all_commands())
    assert used, pattern
  for name in ELSEWHERE.values():
    assert (ROOT / 'tests' / name).is_file(), name


def test_commands_name_what_exists(folder):
  for command, example in all_commands().items():
    try:
      check_command(command, folder / 'images')
    except Exception as error:
      raise AssertionError(f'{example}: {command}') from error


@pytest.mark.parametrize(
  ('command', 'fault'),
  [
    ('python -m dnal_jax.nope --json', 'dnal_jax.nope'),
    (
      'python -m dnal_jax.status --nope DIR',
      "Unknown command line flag 'nope'",
    ),
    (
      'python -m dnal_jax.main --config=configs/nope.py --workdir=D',
      'no config file',
    ),
    (
      'python -m dnal_jax.main --config=configs/NAME.py --config.lr=1 '
      '--workdir=D',
      "unknown config key 'lr'",
    ),
    (
      'python -m dnal_jax.main --config=configs/NAME.py --config.seed=-1 '
      '--workdir=D',
      'seed is -1',
    ),
    ('python -m dnal_jax.main --config=configs/NAME.py', '--config=configs'),
    ('python benchmarks/startup.py --nope', 'has no --nope'),
    ('python benchmarks/nope.py', 'nope.py'),
    ('CONFG=configs/NAME.py launch/sweep.sh 1', 'no setting CONFG'),
    (
      'CONFIG=configs/NAME.py WORKDIR=D launch/sweep.sh 1 -- --config.lr=1',
      "unknown config key 'lr'",
    ),
    ('launch/nope.sh', 'cannot be executed'),
    ('make nope', 'no make nope'),
    ("pip install '.[nope]'", r'.[nope]'),
    ('dnal nope', 'nothing is known'),
  ],
)
def test_faults_are_found(command, fault, folder):
  with pytest.raises(Exception, match=re.escape(fault)):
    check_command(command, folder / 'images')


def test_commands_that_need_no_time(folder):
  done = 0
  for command in all_commands():
    if matching(command, HERE):
      _, _, name, *arguments = filled_in(command, folder)
      arguments = [absolute(word, folder) for word in arguments]
      ended = run_here(importlib.import_module(name), *arguments)
      assert ended.code == 0, (command, ended.err)
      assert ended.out
      done += 1
  assert done


def absolute(word, folder):
  """The word, or the value of the flag, as a path in `folder` if it is one."""
  flag, equals, value = word.rpartition('=')
  found = (folder / value).exists()
  return f'{flag}{equals}{folder / value}' if found else word


def python_examples(page):
  return [e for e in all_examples('python') if e.page == page]


def execute(examples, folder, *, long):
  """Executes the Python examples of a page as one program, in `folder`."""
  names = {'__name__': 'example'}
  with contextlib.chdir(folder):
    for example in examples:
      text = '\n' * (example.line - 1) + example.text
      code = compile(text, str(ROOT / example.page), 'exec')
      if long or not any(word in example.text for word in LONG_PYTHON):
        exec(code, names)
  return names


@pytest.mark.parametrize(
  'page', sorted({example.page for example in all_examples('python')})
)
def test_python_examples(page, folder, monkeypatch):
  monkeypatch.setattr(registry, '_REGISTERED', {})
  execute(python_examples(page), folder, long=False)


@pytest.mark.long
def test_python_examples_that_train(folder, monkeypatch):
  monkeypatch.setattr(registry, '_REGISTERED', {})
  pages = {
    example.page
    for example in all_examples('python')
    if any(word in example.text for word in LONG_PYTHON)
  }
  assert pages
  for page in pages:
    execute(python_examples(page), folder, long=True)


@pytest.mark.long
@pytest.mark.parametrize(
  'command', [c for c in all_commands() if matching(c, LONG)]
)
def test_commands_that_take_long(command, tmp_path):
  for name in ('runs/', 'DIR'):
    command = command.replace(f'={name}', f'={tmp_path}/{name}')
  python = pathlib.Path(sys.executable)
  done = subprocess.run(
    ('env', *filled_in(command, tmp_path)),
    cwd=ROOT,
    env={
      **os.environ,
      'PATH': f'{python.parent}:{os.environ["PATH"]}',
      'PYTHON': str(python),
    },
    capture_output=True,
    text=True,
    check=False,
  )
  assert done.returncode == 0, done.stderr
