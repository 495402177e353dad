"""A checkout, and stand-ins for clouds and schedulers, for tests of launch/."""

import os
import shutil
import subprocess
import sys
import time

from commands import ROOT

STAND_INS = ROOT / 'tests/stand_ins'
# Scripts inherit no other variable from the tests' environment.
KEPT = (
  'JAX_COMPILATION_CACHE_DIR',
  'JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS',
)


def checkout(folder):
  """A git repository of one commit with all that the scripts launch."""
  for name in ('configs', 'dnal_jax', 'launch'):
    ignored = shutil.ignore_patterns('__pycache__')
    shutil.copytree(ROOT / name, folder / name, ignore=ignored)
  for name in ('requirements.txt', '.gitignore'):
    shutil.copy(ROOT / name, folder / name)
  who = ('-c', 'user.name=t', '-c', 'user.email=t@localhost')
  for command in (('init',), ('add', '.'), (*who, 'commit', '--message=t')):
    subprocess.run(
      ('git', *command), cwd=folder, check=True, capture_output=True
    )
  return folder


class Launch:
  """A script of launch/, in a checkout, with the stand-ins first on PATH."""

  def __init__(self, script, root, state, **variables):
    self.script, self.root, self.state = script, root, state
    state.mkdir(exist_ok=True)
    self.env = {
      **{key: os.environ[key] for key in KEPT if key in os.environ},
      'PATH': f'{STAND_INS}/here:{os.environ["PATH"]}',
      'HOME': str(state),
      'JAX_PLATFORMS': 'cpu',
      'STAND_IN': str(state),
      'STAND_IN_PYTHON': sys.executable,
      **variables,
    }

  def start(self, *arguments, **variables):
    return subprocess.Popen(
      ('bash', f'launch/{self.script}', *arguments),
      cwd=self.root,
      env={**self.env, **variables},
      stdout=subprocess.PIPE,
      stderr=subprocess.PIPE,
      text=True,
      start_new_session=True,  # its own process group, as in a terminal
    )

  def run(self, *arguments, **variables):
    process = self.start(*arguments, **variables)
    out, err = process.communicate()
    return subprocess.CompletedProcess((), process.returncode, out, err)

  def refuses(self, *arguments, **variables):
    """The one-line error of a script that called none of the stand-ins."""
    before = self.calls()
    done = self.run(*arguments, **variables)
    assert done.returncode == 2, done
    assert done.stderr.count('\n') == 1, done.stderr
    assert done.stderr.startswith('error: ')
    assert self.calls() == before
    return done.stderr

  def calls(self):
    """The arguments of each call of a stand-in, one line per call."""
    path = self.state / 'calls'
    return path.read_text().splitlines() if path.exists() else []


def until(condition, seconds=60):
  """Waits until condition() is true."""
  end = time.monotonic() + seconds
  while not condition():
    assert time.monotonic() < end, f'not true after {seconds} s'
    time.sleep(0.05)


def script(path, *lines):
  """Writes what each start does, in turn, instead of training
  (stand_ins/worker/python)."""
  path.parent.mkdir(parents=True, exist_ok=True)
  path.write_text('\n'.join(map(str, lines)) + '\n')
