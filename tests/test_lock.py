"""One run per folder: the lock, and what it falls back to."""

import dataclasses
import os
import re
import socket
import subprocess
import sys
import threading
import time

from commands import (
  ROOT,
)
from locking import ELSEWHERE, leave
import pytest

from dnal_jax import errors
from dnal_jax.workdir import json_files, lock


def test_second_is_refused_until_the_first_releases(tmp_path):
  workdir = tmp_path / 'run'
  for _ in range(2):  # one after the other, in one process
    with lock.Lock(workdir):
      with pytest.raises(errors.UserError) as raised, lock.Lock(workdir):
        pass
      assert f'process {os.getpid()} on host {socket.gethostname()}' in str(
        raised.value
      )
    assert not list(workdir.iterdir())


@pytest.mark.slow
@pytest.mark.parametrize('without', [(), ('without',)], ids=['flock', 'none'])
def test_one_of_five_at_the_same_moment_gets_the_lock(tmp_path, without):
  """In a new folder, and in one that a dead process left locked."""
  rounds = 20 - 12 * len(without)
  taker = (sys.executable, 'tests/locking.py', tmp_path, str(rounds))
  five = [
    subprocess.Popen(
      (*taker, *without),
      cwd=ROOT,
      stdout=subprocess.PIPE,
      text=True,
      env={**os.environ, 'PYTHONPATH': str(ROOT)},
    )
    for _ in range(5)
  ]
  for one in five:
    assert one.stdout.readline() == 'ready\n'
  for n in range(rounds):
    if n % 2:
      leave(tmp_path / str(n))
    (tmp_path / f'{n}.go').touch()
    lines = []
    for one in five:
      line = one.stdout.readline()
      while 'taking over' in line:
        line = one.stdout.readline()
      lines.append(line.strip())
    assert lines.count('held') == 1, lines
    # Without the kernel's lock, a refusal may name one that is refused later.
    winner = r'\d+' if without else five[lines.index('held')].pid
    lines.remove('held')
    for line in lines:
      assert re.search(f'process {winner} on host', line), lines
    (tmp_path / f'{n}.end').touch()
  assert [one.wait(timeout=60) for one in five] == [0] * 5
  for one in five:
    one.stdout.close()


def test_dead_process_of_this_machine_is_replaced_at_once(tmp_path, capsys):
  before = leave(tmp_path)
  with lock.Lock(tmp_path) as held:
    assert lock.holder(tmp_path) == held.holder != before
  printed = capsys.readouterr().out
  assert f'process {before.pid} on host {socket.gethostname()}' in printed
  assert 'taking over' in printed


def test_lock_of_the_first_version_is_honoured(tmp_path, monkeypatch):
  """It has the key `heard` for the heartbeat."""
  monkeypatch.setattr('fcntl.flock', no_flock)
  monkeypatch.setattr(lock, 'STALE_SECONDS', 20.0)

  def leave_old(heard, **changes):
    holder = dataclasses.replace(lock.Lock(tmp_path).holder, **changes)
    value = {**dataclasses.asdict(holder), 'heard': heard}
    del value['heartbeat']
    json_files.write_json(tmp_path / 'lock.json', value, part='test')

  now = lock._now('microseconds')
  leave_old(now)
  assert 0 <= lock.holder(tmp_path).seconds_since_heartbeat() < 20
  with pytest.raises(errors.UserError, match=f'process {os.getpid()} on host'):
    lock.Lock(tmp_path).__enter__()
  # On another machine it may be alive, and shows so by its next heartbeat.
  leave_old(now, **ELSEWHERE)
  later = '2000-01-01T00:00:00.000001+00:00'
  timer = threading.Timer(0.5, leave_old, (later,), ELSEWHERE)
  timer.start()
  with pytest.raises(errors.UserError, match='process 7 on host other'):
    lock.Lock(tmp_path).__enter__()
  timer.join()


def test_process_is_identified_by_its_number_and_its_start(
  tmp_path, monkeypatch
):
  """Without the kernel's lock: a later process that has the number of the dead
  one is not the holder, and neither is a zombie."""
  child = subprocess.Popen(('sleep', '60'))
  born = lock._born(child.pid)
  monkeypatch.setattr('fcntl.flock', no_flock)
  leave(tmp_path, pid=child.pid, born=born)
  with pytest.raises(errors.UserError, match=f'process {child.pid} on host'):
    lock.Lock(tmp_path).__enter__()
  leave(tmp_path, pid=child.pid, born='1')
  with lock.Lock(tmp_path):
    pass
  leave(tmp_path, pid=child.pid, born=born)
  child.kill()
  os.waitid(os.P_PID, child.pid, os.WEXITED | os.WNOWAIT)  # a zombie by now
  with lock.Lock(tmp_path):
    pass
  child.wait()


def no_flock(*arguments):
  raise OSError('no flock here')


def test_stale_holder_on_another_host_is_replaced(
  tmp_path, monkeypatch, capsys
):
  monkeypatch.setattr(lock, 'STALE_SECONDS', 0.5)
  leave(tmp_path, **ELSEWHERE)
  started = time.monotonic()
  with lock.Lock(tmp_path) as held:
    assert time.monotonic() - started >= 0.5
    assert lock.holder(tmp_path) == held.holder
  printed = capsys.readouterr().out
  assert 'may be in use by process 7 on host other' in printed
  assert 'which is dead: taking over' in printed


def test_holder_with_a_heartbeat_on_another_host_is_not_replaced(
  tmp_path, monkeypatch
):
  monkeypatch.setattr(lock, 'STALE_SECONDS', 20.0)
  leave(tmp_path, **ELSEWHERE)
  later = {
    'heartbeat': '2000-01-01T00:00:00.000001+00:00'
  }  # its clock is wrong
  timer = threading.Timer(0.5, leave, (tmp_path,), {**ELSEWHERE, **later})
  timer.start()
  with pytest.raises(errors.UserError, match='process 7 on host other'):
    lock.Lock(tmp_path).__enter__()
  timer.join()
  assert lock.holder(tmp_path).token == 'dead'


def test_holder_on_another_host_may_release_meanwhile(
  tmp_path, monkeypatch, capsys
):
  monkeypatch.setattr(lock, 'STALE_SECONDS', 20.0)
  leave(tmp_path, **ELSEWHERE)
  timer = threading.Timer(0.5, (tmp_path / 'lock.json').unlink)
  timer.start()
  with lock.Lock(tmp_path):
    pass
  timer.join()
  assert 'taking over' not in capsys.readouterr().out


def test_heartbeats_until_another_process_takes_over(tmp_path, monkeypatch):
  monkeypatch.setattr(lock, '_HEARTBEAT_SECONDS', 0.02)
  with lock.Lock(tmp_path) as held:
    heartbeats = {lock.holder(tmp_path).heartbeat}
    end = time.monotonic() + 20
    while len(heartbeats) < 3 and time.monotonic() < end:
      heartbeats.add(lock.holder(tmp_path).heartbeat)
    assert len(heartbeats) >= 3
    held.check()
    taken = leave(tmp_path, **ELSEWHERE)
    time.sleep(0.2)
    if lock.holder(tmp_path) != taken:  # a heartbeat was being written
      taken = leave(tmp_path, **ELSEWHERE)
    with pytest.raises(errors.UserError, match='taken over by process 7 on'):
      held.check()
    time.sleep(0.2)
    assert lock.holder(tmp_path) == taken
  assert lock.holder(tmp_path) == taken


@pytest.mark.parametrize(
  'content', ['', '{', '[1]', '{"pid": 3}', '"text"', '"heard"', '7']
)
def test_damaged_file_names_no_holder(tmp_path, content):
  (tmp_path / 'lock.json').write_text(content)
  assert lock.holder(tmp_path) is None
  with lock.Lock(tmp_path) as held:
    assert lock.holder(tmp_path) == held.holder


def test_folder_that_cannot_be_written(tmp_path):
  (tmp_path / 'lock.json').mkdir()
  with pytest.raises(errors.UserError, match='cannot be written'):
    lock.Lock(tmp_path).__enter__()
  (tmp_path / 'lock.json').rmdir()
  with lock.Lock(tmp_path):
    pass
