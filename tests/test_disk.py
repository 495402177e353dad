"""A disk that fills up or becomes read-only: a message, and nothing is lost."""

import contextlib
import os
import re
import subprocess

from commands import (
  ROOT,
  SHORT,
  assert_same,
  command,
  start,
  until,
)
from crash_test import left_out, readonly, small_disk
import in_process
import pytest

from dnal_jax import errors

FLAGS = (*SHORT, '--config.checkpoint_steps=4')


@contextlib.contextmanager
def disk(folder, size):
  """Mounts a small disk there; gives a function that changes its size."""
  why = left_out('full', folder.parent)
  if why:
    pytest.skip(why)
  with small_disk(folder, size):
    yield lambda size: subprocess.run(
      ('mount', '-o', f'remount,size={size}', folder), check=True
    )


def check_message(message, folder):
  found = re.search(
    r"'(.*)' is on a disk with ([\d,]+) bytes free, and a checkpoint needs"
    r' ([\d,]+)',
    message,
  )
  assert found, message
  assert found[1] == str(folder / 'run/checkpoints')
  assert int(found[3].replace(',', '')) > 2_300_000  # weights and momenta
  assert 'the same command goes on' in message


@pytest.fixture(scope='session')
def alone(tmp_path_factory):
  workdir = tmp_path_factory.mktemp('alone') / 'run'
  in_process.run(workdir, *FLAGS)
  return workdir


def finish(workdir, alone, capsys):
  """Goes on to the end, which is that of the run that nothing has hurt."""
  in_process.run(workdir, *FLAGS)
  assert 'going on with' in capsys.readouterr().out
  assert_same(workdir, alone)


@pytest.mark.slow
@pytest.mark.xdist_group('disk')
def test_a_disk_that_is_too_small_for_a_checkpoint(alone, tmp_path, capsys):
  with disk(tmp_path / 'disk', '5m') as resize:
    workdir = tmp_path / 'disk/run'
    with pytest.raises(errors.UserError) as raised:
      in_process.run(workdir, *FLAGS)
    check_message(str(raised.value), tmp_path / 'disk')
    assert not (workdir / 'result.json').exists()
    resize('64m')
    finish(workdir, alone, capsys)


@pytest.mark.slow
@pytest.mark.xdist_group('disk')
def test_a_disk_that_fills_up_in_the_middle_of_a_save(alone, tmp_path, capsys):
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
    _, message = process.communicate()
    assert process.returncode == 2, message
    check_message(message, tmp_path / 'disk')
    assert message.strip().splitlines()[-1].startswith('error: ')
    assert 'Traceback' not in message, message
    filler.unlink()
    finish(workdir, alone, capsys)


@pytest.mark.long
@pytest.mark.xdist_group('disk')
def test_a_folder_that_may_not_be_written_any_more(alone, tmp_path, capsys):
  why = left_out('readonly', tmp_path)
  if why:
    pytest.skip(why)
  workdir = tmp_path / 'run'
  process = start(workdir, *FLAGS)
  until(process, 'search 1/')
  with readonly(workdir):
    try:
      # The threads of the save that failed must not keep it from ending.
      _, message = process.communicate(timeout=60)
    finally:
      process.kill()
    assert process.returncode == 2, message
    assert 'Traceback' not in message, message
    last = message.strip().splitlines()[-1]
    assert last.startswith(f"error: '{workdir}")
    assert 'cannot be written any more (' in last
    assert 'the same command goes on from the last checkpoint' in last
    with pytest.raises(errors.UserError) as raised:  # nor can it begin
      in_process.run(workdir, *FLAGS)
    assert f"--workdir '{workdir}' cannot be written" in str(raised.value)
  finish(workdir, alone, capsys)
