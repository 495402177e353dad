"""What commands say about themselves, and `dnal`, which runs them all."""

import runpy
import shlex
import sys
import tomllib

from commands import ROOT, run_here
import pytest

import dnal_jax
from dnal_jax import __main__ as dnal
from dnal_jax import dryrun, predict, prepare, status, summary
from dnal_jax.compare import __main__ as compare
import dnal_jax.main

COMMANDS = [dnal_jax.main, compare, dryrun, predict, prepare, status, summary]


@pytest.mark.parametrize('module', COMMANDS, ids=lambda m: m.__name__)
def test_help_shows_the_docstring_and_every_flag(module):
  ended = run_here(module, '--help')
  assert (ended.code, ended.err) == (0, '')
  assert ended.out.startswith(module.__doc__.strip().splitlines()[0])
  for name in module.FLAGS:
    assert f'  --{name}: ' in ended.out
  assert ('--config=FILE --list-overrides' in ended.out) == (
    'config' in module.FLAGS
  )
  assert max(map(len, ended.out.splitlines())) <= 80
  assert run_here(module, '-h') == ended
  version = run_here(module, '--version')
  assert version == (0, f'dnal_jax {dnal_jax.__version__}\n', '')


def test_overrides_are_listed_with_their_values():
  """Each line is a flag that the command takes."""
  config = '--config=configs/vgg16_fashion_mnist.py'
  ended = run_here(summary, config, '--config.seed=7', '--list-overrides')
  assert (ended.code, ended.err) == (0, '')
  lines = ended.out.splitlines()
  assert {'--config.seed=7', '--config.data.crop_pad=4'} <= {*lines}
  assert '--config.stages.warmup.train.weights.lr.base=0.1' in lines
  overrides = [shlex.split(line)[0] for line in lines if 'None' not in line]
  assert len(overrides) > 60
  assert run_here(summary, config, *overrides).code == 0
  ended = run_here(summary, '--list-overrides')
  assert (ended.code, ended.out) == (2, '')
  assert 'give --config=FILE as well' in ended.err


def test_a_flag_for_a_target_chooses_the_variant(tmp_path):
  """Unless one is named, or the file has none."""

  def overrides(config, *flags):
    ended = run_here(summary, f'--config={config}', *flags, '--list-overrides')
    assert ended.code == 0, ended.err
    return {*ended.out.splitlines()}

  quickstart, by_step = 'configs/quickstart.py', 'stages.search.delta_by=step'
  flag = '--config.target.macs=0.25'
  assert f'--config.{by_step}' not in overrides(quickstart)
  assert {f'--config.{by_step}', flag} <= overrides(quickstart, flag)
  named = overrides(f'{quickstart}:baseline', flag)
  assert f'--config.{by_step}' not in named
  mine = tmp_path / 'mine.py'
  mine.write_text(
    'from dnal_jax.config import read_config\n'
    "def get_config(): return read_config('quickstart')\n"
  )
  assert {'--config.penalty=0.04', flag} <= overrides(mine, flag)


@pytest.mark.parametrize(
  ('key', 'hint'),
  [
    ('data.flp', '; did you mean data.flip? --list-overrides lists all'),
    ('flip', '; did you mean data.flip? '),  # at another place
    ('data.seed', '; did you mean seed? '),
    ('traget.macs', '; did you mean target.macs? '),
    ('stages.serch.epochs', '; did you mean stages.search.epochs? '),
    ('accumulate', '; did you mean grad_accum_steps? '),  # of version 1
    ('network.nope', '; network has name, width; --list-overrides lists all'),
    ('nope', '; the config has batch_size, checkpoint_steps, '),
  ],
)
def test_an_unknown_key_is_answered_with_those_like_it(key, hint):
  ended = run_here(
    summary, '--config=configs/quickstart.py', f'--config.{key}=1'
  )
  assert (ended.code, ended.out) == (2, '')
  assert f"error: unknown config key '{key}'{hint}" in ended.err
  assert ended.err.count('\n') == 1


# `dnal`, or `python -m dnal_jax`.


def dnal_here(monkeypatch, capsys, *arguments):
  """(exit code, standard output, standard error) of `dnal` in this process."""
  monkeypatch.setattr(sys, 'argv', ['dnal', *arguments])
  monkeypatch.setattr(
    runpy, 'run_module', lambda *a, **k: print(a, k, sys.argv)
  )
  try:
    code = dnal.main()
  except SystemExit as end:
    code = end.code
  return code, *capsys.readouterr()


def test_dnal_lists_its_commands(monkeypatch, capsys):
  of_no_arguments = dnal_here(monkeypatch, capsys)
  assert of_no_arguments == dnal_here(monkeypatch, capsys, '--help')
  code, out, err = of_no_arguments
  assert (code, err) == (None, '')
  assert {m.__name__.removesuffix('.__main__') for m in COMMANDS} == {
    f'dnal_jax.{module}' for module, _ in dnal.COMMANDS.values()
  }
  for name, (_, text) in dnal.COMMANDS.items():
    assert f'\n  {name} ' in out
    assert f' {text}\n' in out
  _, out, _ = dnal_here(monkeypatch, capsys, '--version')
  assert out == f'dnal_jax {dnal_jax.__version__}\n'
  code, out, err = dnal_here(monkeypatch, capsys, 'sumary')
  assert (code, out) == (2, '')
  assert err.startswith("error: unknown command 'sumary' (did you mean 'summa")


def test_dnal_runs_a_command_as_python_does(monkeypatch, capsys):
  """Under the name that has a run handle signals before it imports JAX."""
  code, out, err = dnal_here(monkeypatch, capsys, 'train', '--workdir=DIR')
  how = {'run_name': '__main__', 'alter_sys': True}
  assert (code, err) == (None, '')
  assert out == f"('dnal_jax.main',) {how} ['dnal', '--workdir=DIR']\n"
  project = tomllib.loads((ROOT / 'pyproject.toml').read_text())['project']
  assert project['scripts'] == {'dnal': 'dnal_jax.__main__:main'}


@pytest.mark.parametrize('module', COMMANDS, ids=lambda m: m.__name__)
def test_unknown_flags_and_stray_arguments(module):
  ended = run_here(module, '--nope')
  assert (ended.code, ended.out) == (2, '')
  assert "error: Unknown command line flag 'nope'" in ended.err
  folders = {status: None, predict: None, summary: 1}.get(module, 0)
  if folders is not None:  # else there may be any number of arguments
    ended = run_here(module, *['stray'] * (folders + 1))
    assert (ended.code, ended.out) == (2, '')
    assert "unexpected argument 'stray'; flags are --key=value" in ended.err
