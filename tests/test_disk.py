"""A disk that fills up, or may not be written: told, and nothing is lost."""

import contextlib
import os
import re
import subprocess

from commands import (
  ROOT,
  SHORT,
  assert_same,
  command,
  fail,
  start,
  succeed,
  until,
)
from crash_test import left_out, readonly, small_disk
import pytest

FLAGS = (*SHORT, '--config.checkpoint_steps=4')


@contextlib.contextmanager
def disk(folder, size):
  """A small disk mounted there; gives a function that makes it larger."""
  why = left_out('full', folder.parent)
  if why:
    pytest.skip(why)
  with small_disk(folder, size):
    yield lambda size: subprocess.run(
      ('mount', '-o', f'remount,size={size}', folder), check=True
    )


def check_message(told, folder):
  found = re.search(
    r"'(.*)' is on a disk with ([\d,]+) bytes free, and a checkpoint needs"
    r' ([\d,]+)',
    told,
  )
  assert found, told
  assert found[1] == str(folder / 'run/checkpoints')
  assert int(found[3].replace(',', '')) > 2_300_000  # weights and momenta
  assert 'the same command goes on' in told


@pytest.fixture(scope='module')
def alone(tmp_path_factory):
  workdir = tmp_path_factory.mktemp('alone') / 'run'
  succeed(workdir, *FLAGS)
  return workdir


@pytest.mark.slow
@pytest.mark.xdist_group('disk')
def test_a_disk_that_is_too_small_for_a_checkpoint(alone, tmp_path):
  with disk(tmp_path / 'disk', '5m') as enlarge:
    workdir = tmp_path / 'disk/run'
    check_message(fail(workdir, *FLAGS), tmp_path / 'disk')
    assert not (workdir / 'result.json').exists()
    enlarge('64m')
    assert 'going on with' in succeed(workdir, *FLAGS)
    assert_same(workdir, alone)


@pytest.mark.slow
@pytest.mark.xdist_group('disk')
def test_a_disk_that_fills_up_in_the_middle_of_a_save(alone, tmp_path):
  """Something else takes what is left as soon as a save has begun."""
  with disk(tmp_path / 'disk', '24m'):
    workdir, filler = tmp_path / 'disk/run', tmp_path / 'disk/filler'
    process = subprocess.Popen(
      command(workdir, *FLAGS),
      cwd=ROOT,
      stdout=subprocess.DEVNULL,
      stderr=subprocess.PIPE,
      text=True,
    )
    checkpoints = workdir / 'checkpoints'
    while process.poll() is None:
      begun = [f.name for f in checkpoints.glob('*tmp*')]
      if begun and (checkpoints / '4').exists():  # not the first
        break
    with contextlib.suppress(OSError), filler.open('wb', 0) as file:
      while True:
        file.write(os.urandom(4096))
    _, told = process.communicate()
    assert process.returncode == 2, told
    check_message(told, tmp_path / 'disk')
    assert told.strip().splitlines()[-1].startswith('error: ')
    assert 'Traceback' not in told, told
    filler.unlink()
    assert 'going on with' in succeed(workdir, *FLAGS)
    assert_same(workdir, alone)


@pytest.mark.slow
@pytest.mark.xdist_group('disk')
def test_a_folder_that_may_not_be_written_any_more(alone, tmp_path):
  why = left_out('readonly', tmp_path)
  if why:
    pytest.skip(why)
  workdir = tmp_path / 'run'
  process = start(workdir, *FLAGS)
  until(process, 'search 1/')
  with readonly(workdir):
    try:
      # No thread of a save that failed keeps it from ending.
      _, told = process.communicate(timeout=60)
    finally:
      process.kill()
    assert process.returncode == 2, told
    assert 'Traceback' not in told, told
    last = told.strip().splitlines()[-1]
    assert last.startswith(f"error: '{workdir}")
    assert 'cannot be written any more (' in last
    assert 'the same command goes on from the last checkpoint' in last
    # Nor can it begin.
    message = fail(workdir, *FLAGS)
    assert f"--workdir '{workdir}' cannot be written" in message
  assert 'going on with' in succeed(workdir, *FLAGS)
  assert_same(workdir, alone)
