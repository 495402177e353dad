"""One run in a folder: real processes, real deaths, and the fall-backs."""

import json
import os
import re
import signal
import socket
import subprocess
import sys
import threading
import time

from commands import LONG, ROOT, Processes, command, fail, result, start, until
from locking import ELSEWHERE, leave
import pytest

from dnal_jax import errors
from dnal_jax.workdir import lock


def test_second_is_refused_by_name_until_the_first_lets_go(tmp_path):
  workdir = tmp_path / 'run'
  for _ in range(2):  # one after the other, in one process
    with lock.Lock(workdir):
      with pytest.raises(errors.UserError) as told, lock.Lock(workdir):
        pass
      assert f'process {os.getpid()} on host {socket.gethostname()}' in str(
        told.value
      )
    assert not list(workdir.iterdir())


@pytest.mark.slow
@pytest.mark.parametrize('without', [(), ('without',)], ids=['flock', 'none'])
def test_of_five_at_the_same_moment_one_has_it(tmp_path, without):
  """In a new folder and in one that a dead process has left locked."""
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
    told = []
    for one in five:
      line = one.stdout.readline()
      while 'taking over' in line:
        line = one.stdout.readline()
      told.append(line.strip())
    assert told.count('held') == 1, told
    # Without the kernel's lock, one may be refused for who is refused later.
    winner = r'\d+' if without else five[told.index('held')].pid
    told.remove('held')
    assert all(re.search(f'process {winner} on host', line) for line in told), (
      told
    )
    (tmp_path / f'{n}.end').touch()
  assert [one.wait(timeout=60) for one in five] == [0] * 5
  for one in five:
    one.stdout.close()


def test_dead_process_of_this_machine_is_succeeded_at_once(tmp_path, capsys):
  before = leave(tmp_path)
  with lock.Lock(tmp_path) as held:
    assert lock.holder(tmp_path) == held.holder != before
  told = capsys.readouterr().out
  assert f'process {before.pid} on host {socket.gethostname()}' in told
  assert 'taking over' in told


def test_process_is_known_by_its_number_and_its_start(tmp_path, monkeypatch):
  """Where the kernel's lock says nothing: a later process with the number of
  the dead one is not it, and neither is one that has ended."""
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


def test_other_host_that_is_silent_is_succeeded(tmp_path, monkeypatch, capsys):
  monkeypatch.setattr(lock, 'STALE', 0.5)
  leave(tmp_path, **ELSEWHERE)
  started = time.monotonic()
  with lock.Lock(tmp_path) as held:
    assert time.monotonic() - started >= 0.5
    assert lock.holder(tmp_path) == held.holder
  told = capsys.readouterr().out
  assert 'may be in use by process 7 on host other' in told
  assert 'which is dead: taking over' in told


def test_other_host_that_is_heard_of_is_not(tmp_path, monkeypatch):
  monkeypatch.setattr(lock, 'STALE', 20.0)
  leave(tmp_path, **ELSEWHERE)
  later = {'heard': '2000-01-01T00:00:00.000001+00:00'}  # its clock is wrong
  timer = threading.Timer(0.5, leave, (tmp_path,), {**ELSEWHERE, **later})
  timer.start()
  with pytest.raises(errors.UserError, match='process 7 on host other'):
    lock.Lock(tmp_path).__enter__()
  timer.join()
  assert lock.holder(tmp_path).token == 'dead'


def test_other_host_may_let_go_meanwhile(tmp_path, monkeypatch, capsys):
  monkeypatch.setattr(lock, 'STALE', 20.0)
  leave(tmp_path, **ELSEWHERE)
  timer = threading.Timer(0.5, (tmp_path / 'lock.json').unlink)
  timer.start()
  with lock.Lock(tmp_path):
    pass
  timer.join()
  assert 'taking over' not in capsys.readouterr().out


def test_holder_is_heard_of_until_another_takes_over(tmp_path, monkeypatch):
  monkeypatch.setattr(lock, '_BEAT', 0.02)
  with lock.Lock(tmp_path) as held:
    heard = {lock.holder(tmp_path).heard}
    end = time.monotonic() + 20
    while len(heard) < 3 and time.monotonic() < end:
      heard.add(lock.holder(tmp_path).heard)
    assert len(heard) >= 3
    held.check()
    taken = leave(tmp_path, **ELSEWHERE)
    time.sleep(0.2)
    if lock.holder(tmp_path) != taken:  # it was just writing
      taken = leave(tmp_path, **ELSEWHERE)
    with pytest.raises(errors.UserError, match='taken over by process 7 on'):
      held.check()
    time.sleep(0.2)
    assert lock.holder(tmp_path) == taken
  assert lock.holder(tmp_path) == taken


@pytest.mark.parametrize('content', ['', '{', '[1]', '{"pid": 3}', '"text"'])
def test_damaged_file_is_no_holder(tmp_path, content):
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


@pytest.mark.slow
def test_second_run_is_refused_and_a_killed_one_succeeded(tmp_path):
  workdir = tmp_path / 'run'
  first = start(workdir, *LONG)
  until(first, 'warmup 1/')
  told = fail(workdir, *LONG)
  assert f'is in use by process {first.pid} on host' in told
  assert socket.gethostname() in told
  first.kill()
  first.communicate()

  second = start(workdir, *LONG)
  until(second, f"'{workdir}' was left locked by process {first.pid} on host")
  until(second, 'warmup ')
  second.send_signal(signal.SIGTERM)
  second.communicate(timeout=120)
  assert second.returncode == 75
  assert not (workdir / 'lock.json').exists()


@pytest.mark.slow
def test_of_five_commands_at_once_one_runs(tmp_path):
  workdir = tmp_path / 'run'
  five = [start(workdir, *LONG) for _ in range(5)]
  while sum(one.poll() is None for one in five) > 1:
    time.sleep(0.1)
  (runs,) = (one for one in five if one.poll() is None)
  until(runs, 'warmup 2/')
  runs.send_signal(signal.SIGTERM)
  for one in five:
    _, told = one.communicate(timeout=120)
    assert one.returncode == (75 if one is runs else 2), told
    if one is not runs:
      assert f'in use by process {runs.pid} on host' in told
      assert 'Traceback' not in told


TWICE = """
import pathlib, sys, threading, time
from configs import quickstart
from dnal_jax import errors, settings, train

config = quickstart.get_config()
for stage, epochs in (('warmup', 1), ('search', 2), ('finetune', 1)):
  config.stages[stage].epochs = epochs
config = config.to_dict()
folder = pathlib.Path(sys.argv[1])

def run(name):
  return train.run(settings.parse(config), config, folder / name)

one = threading.Thread(target=run, args=('run',))
one.start()
while not (folder / 'run/lock.json').exists():
  time.sleep(0.01)
try:
  run('run')
except errors.UserError as error:
  print('refused:', error)
one.join()
run('again')
"""


@pytest.mark.slow
def test_one_process_runs_one_after_the_other_but_not_both(tmp_path):
  done = subprocess.run(
    (sys.executable, '-c', TWICE, tmp_path),
    cwd=ROOT,
    capture_output=True,
    text=True,
    check=True,
  )
  assert 'refused: ' in done.stdout
  assert 'is in use by process' in done.stdout
  assert result(tmp_path / 'run') == result(tmp_path / 'again')
  assert not list(tmp_path.rglob('lock.json'))


@pytest.mark.slow
def test_a_run_that_was_taken_over_ends_without_writing(tmp_path):
  """As a machine that was suspended finds another at work."""
  workdir = tmp_path / 'run'
  first = start(workdir, *LONG)
  until(first, 'warmup 1/')
  leave(workdir, **ELSEWHERE)
  _, told = first.communicate(timeout=120)
  assert first.returncode == 2
  assert 'was taken over by process 7 on host other' in told
  assert lock.holder(workdir).token == 'dead'
  assert json.loads((workdir / 'status.json').read_text())['state'] == 'running'


@pytest.mark.slow
def test_two_processes_that_are_one_run_are_both_refused(tmp_path):
  """With the same message: neither waits for the other, or lost it."""
  workdir = tmp_path / 'run'
  with lock.Lock(workdir):
    for code, _, told in Processes(*[command(workdir)] * 2).ended():
      assert code == 2
      assert f'in use by process {os.getpid()} on host' in told


IMPATIENT = """
import runpy
from dnal_jax import lock
lock.STALE = 40.0
runpy.run_module('dnal_jax.main', run_name='__main__', alter_sys=True)
"""


@pytest.mark.slow
def test_two_processes_wait_for_another_host_together(tmp_path):
  """For longer than the 30 s in which a process must answer the others."""
  workdir = tmp_path / 'run'
  leave(workdir, **ELSEWHERE)
  python, _, _, *flags = command(workdir, *LONG)
  processes = Processes(*[(python, '-c', IMPATIENT, *flags)] * 2)
  processes.until(f"'{workdir}' was left locked by process 7 on host other")
  processes.until('warmup 1/')
  processes.all[1].send_signal(signal.SIGTERM)
  assert [code for code, _, _ in processes.ended()] == [75, 75]
