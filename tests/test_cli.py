"""Exit codes and messages of commands."""

import glob
import os
import subprocess
import sys
import types

from absl import flags
from commands import ROOT, run_here
import pytest

from dnal_jax import errors, summary
from dnal_jax.config import read_config


def command(end):
  """A command without flags that ends in an exception, or prints a line."""

  def body(argv):
    if end is not None:
      raise end
    print(f'arguments: {argv[1:]}')

  return types.SimpleNamespace(
    __name__='command', body=body, FLAGS=flags.FlagValues()
  )


@pytest.mark.parametrize(
  ('end', 'code', 'out', 'err'),
  [
    (None, 0, "arguments: ['a', 'b']\n", ''),
    (errors.UserError('the fix'), 2, '', 'error: the fix\n'),
    (OSError(28, 'No space'), 2, '', 'error: [Errno 28] No space\n'),
    (errors.Stopped('where'), 75, '', 'where\n'),
  ],
)
def test_exit_codes(end, code, out, err):
  assert run_here(command(end), 'a', 'b') == (code, out, err)


def test_interrupted():
  ended = run_here(command(KeyboardInterrupt()))
  assert ended == (130, '', '\ninterrupted\n')


def test_a_bug_shows_its_traceback():
  ended = run_here(command(ZeroDivisionError('a bug')))
  assert ended.code == 1
  assert ended.err.startswith('Traceback (most recent call last):')
  assert ended.err.endswith('ZeroDivisionError: a bug\n')


@pytest.mark.parametrize(
  ('flags', 'message'),
  [
    (
      ['--config=configs/quickstart.py', '--config.target=0.1'],
      "--config.target is a group of keys, and '0.1' is one value: set one of"
      ' them, --config.target.KEY=0.1',
    ),
    (
      ['--network=vgg7_digits', '--config.seed=1'],
      '--config=FILE is missing, of which --config.seed changes a value',
    ),
  ],
)
def test_flags_of_a_config_that_do_not_fit(flags, message):
  ended = run_here(summary, *flags)
  assert (ended.code, ended.out) == (2, '')
  assert message in ended.err


def test_flags_do_not_outlive_a_command():
  assert run_here(summary, '--network=vgg7_digits', '--json').code == 0
  config = '--config=configs/quickstart.py'
  ended = run_here(summary, config, '--config.network.width=0.25')
  assert ended.code == 0
  assert not ended.out.startswith('{')
  assert set(summary.FLAGS) == {'config', 'network', 'architecture', 'json'}
  again = run_here(summary, config)
  assert again.code == 0
  assert again.out != ended.out


@pytest.mark.parametrize(
  ('content', 'argument', 'reason'),
  [
    ('x = 1', '', "must define get_config()"),
    ('def get_config(): return 3', '', 'must return a ConfigDict, not 3'),
    ('def get_config(', '', 'SyntaxError: '),
    ('import configs.nope', '', "No module named 'configs.nope' ('mine.py', l"),
    ('import configs.nope', '', "keep the file in the folder 'configs' of"),
    ('import nope_nope', '', "install 'nope_nope', or correct the import"),
    ('\n\n1 / 0', '', "Error: division by zero ('mine.py', line 3)"),
    ("open('gone.txt')", '', "No such file or directory: 'gone.txt' ('mine.p"),
    ('def get_config(): return 3', ':x', 'takes 0 positional arguments but 1'),
    (
      'from dnal_jax.config import read_config\n'
      "def get_config(variant=''): return read_config('quickstart')",
      ':target',
      "ignores the variant 'target'; pass it on, as in read_config(f'NAME:",
    ),
  ],
)  # fmt: skip
def test_a_config_file_that_fails(content, argument, reason, tmp_path):
  """One line with the file, the reason and where it was raised."""
  path = tmp_path / 'mine.py'
  path.write_text(content)
  ended = run_here(summary, f'--config={path}{argument}', '--config.seed=1')
  assert (ended.code, ended.out) == (2, '')
  (line,) = ended.err.splitlines()
  assert line.startswith(f"error: config '{path}{argument}' cannot be read: ")
  assert reason in line
  assert line.count("'") % 2 == 0


@pytest.mark.parametrize(
  ('path', 'hint'),
  [
    ('configs/quikstart.py', "did you mean 'configs/quickstart.py'?"),
    ('gone/quickstart.py', "give the path of a file, or the name of a config"),
    ('', 'give the path'),
  ],
)  # fmt: skip
def test_a_config_file_that_is_missing(path, hint):
  ended = run_here(summary, f'--config={path}:baseline')
  assert (ended.code, ended.out) == (2, '')
  (line,) = ended.err.splitlines()
  assert f"there is no config file '{path}'" in line
  assert hint in line


@pytest.mark.parametrize(
  ('flag', 'message'),
  [
    ('--config.seed=x', "config.seed=x"),
    ('--config.data.nope=1', "unknown config key 'data.nope'"),
    ('--config.nope.seed=1', "unknown config key 'nope.seed'"),
    ('--config.data.name.x=1', "must be integers, not 'str'"),
  ],
)  # fmt: skip
def test_messages_of_overrides_have_both_quotes(flag, message):
  ended = run_here(summary, '--config=configs/quickstart.py', flag)
  assert (ended.code, ended.out) == (2, '')
  assert message in ended.err
  assert ended.err.count("'") % 2 == 0


def test_configs_of_the_project_have_names(monkeypatch, tmp_path):
  """Which are known in any directory."""
  monkeypatch.chdir(tmp_path)
  (tmp_path / 'quickstart').mkdir()
  by_name = read_config('quickstart:baseline')
  path = ROOT / 'configs/quickstart.py'
  assert by_name == read_config(f'{path}:baseline') != read_config('quickstart')
  ended = run_here(summary, '--config=quikstart')
  assert (ended.code, ended.out) == (2, '')
  assert "no config 'quikstart' (did you mean 'quickstart'?)" in ended.err
  assert 'a config of your own is given by its path, FILE.py' in ended.err


def test_a_config_imports_from_its_own_project(monkeypatch, tmp_path):
  """And not from what happens to be in the working directory."""
  monkeypatch.delitem(sys.modules, 'configs', raising=False)
  for project, name in (('mine', 'resnet8_digits'), ('elsewhere', 'nope')):
    configs = tmp_path / project / 'configs'
    configs.mkdir(parents=True)
    (configs / 'shared_by_mine.py').write_text(f'NAME = {name!r}')
    (configs / 'one.py').write_text(
      'from configs import shared_by_mine\n'
      'from dnal_jax.config import read_config\n'
      'def get_config():\n'
      "  config = read_config('quickstart')\n"
      '  config.network.name = shared_by_mine.NAME\n'
      '  return config\n'
    )
  monkeypatch.chdir(tmp_path / 'elsewhere')
  monkeypatch.syspath_prepend('')
  one = read_config(str(tmp_path / 'mine/configs/one.py'))
  assert one.network.name == 'resnet8_digits'


LOGS = """
from absl import flags, logging
import jax
from dnal_jax import cli
def body(argv):
  logging.error('of a library that uses absl')
  logging.warning('of no interest')
  exec(compile("logging.error('of orbax')", 'lib/orbax/a.py', 'exec'))
  jax.devices()
cli.main(body, flags.FlagValues())
"""


@pytest.mark.slow
def test_errors_of_plugins_of_jax_are_shown(tmp_path):
  """And those of libraries that use absl, but for orbax."""
  plugin = tmp_path / 'jax_plugins/broken/__init__.py'
  plugin.parent.mkdir(parents=True)
  plugin.write_text("def initialize(): raise RuntimeError('it is broken')")
  done = subprocess.run(
    (sys.executable, '-c', LOGS),
    cwd=ROOT,
    env={**os.environ, 'PYTHONPATH': f'{tmp_path}:{ROOT}'},
    capture_output=True,
    text=True,
    check=True,
  )
  assert 'Jax plugin configuration error' in done.stderr
  assert 'RuntimeError: it is broken' in done.stderr
  assert 'of a library that uses absl' in done.stderr
  assert 'of orbax' not in done.stderr
  assert 'of no interest' not in done.stderr


@pytest.mark.skipif(bool(glob.glob('/dev/nvidia*')), reason='has a GPU')
def test_platforms_that_jax_cannot_use(tmp_path):
  """One that it does not know, and one without a device; in a run, and in a
  command to which a config comes that registers a network."""
  mine = tmp_path / 'mine.py'
  mine.write_text('import jax\ndef get_config(): jax.devices()\n')
  quickstart = '--config=configs/quickstart.py', f'--workdir={tmp_path}/run'
  started = [
    (
      platform,
      subprocess.Popen(
        (sys.executable, '-m', *command),
        cwd=ROOT,
        env={**os.environ, 'JAX_PLATFORMS': platform},
        stderr=subprocess.PIPE,
        text=True,
      ),
    )
    for platform, *command in (
      ('cpu,none', 'dnal_jax.main', *quickstart),
      ('cuda', 'dnal_jax.summary', '--network=vgg7_digits'),
      ('cuda', 'dnal_jax.summary', f'--config={mine}'),
    )
  ]
  for platform, process in started:
    _, err = process.communicate(timeout=120)
    assert process.returncode == 2, err
    assert err.startswith(f"error: JAX_PLATFORMS is '{platform}'")
    assert 'unset it to let JAX choose, or set it to cpu' in err
    assert err.count('\n') == 1
  assert not (tmp_path / 'run').exists()


THREAD = """
import threading, time
from absl import flags
from dnal_jax import cli, errors
def body(argv):
  threading.Thread(target=time.sleep, args=(600,)).start()
  raise errors.Stopped('the disk does not respond')
cli.main(body, flags.FlagValues())
"""


def test_a_failed_process_does_not_wait_for_threads():
  done = subprocess.run(
    (sys.executable, '-c', THREAD),
    cwd=ROOT,
    capture_output=True,
    text=True,
    timeout=120,
    check=False,
  )
  assert (done.returncode, done.stderr) == (75, 'the disk does not respond\n')
