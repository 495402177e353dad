"""Whole runs that want the same folder: real processes, real deaths."""

import json
import os
import signal
import socket
import subprocess
import sys
import time

from commands import (
  LONG,
  ROOT,
  Processes,
  command,
  fail_here,
  result,
  start,
  until,
)
from locking import ELSEWHERE, leave
import pytest

from dnal_jax.workdir import lock


@pytest.mark.slow
def test_second_run_is_refused_and_a_killed_one_replaced(tmp_path):
  workdir = tmp_path / 'run'
  first = start(workdir, *LONG)
  until(first, 'warmup 1/')
  message = fail_here(workdir, *LONG)
  assert f'is in use by process {first.pid} on host' in message
  assert socket.gethostname() in message
  first.kill()
  first.communicate()

  second = start(workdir, *LONG)
  until(second, f"'{workdir}' was left locked by process {first.pid} on host")
  until(second, 'warmup ')
  second.send_signal(signal.SIGTERM)
  second.communicate(timeout=120)
  assert second.returncode == 75
  assert not (workdir / 'lock.json').exists()


@pytest.mark.long
def test_one_of_five_commands_at_once_runs(tmp_path):
  workdir = tmp_path / 'run'
  five = [start(workdir, *LONG) for _ in range(5)]
  while sum(one.poll() is None for one in five) > 1:
    time.sleep(0.1)
  (runs,) = (one for one in five if one.poll() is None)
  until(runs, 'warmup 2/')
  runs.send_signal(signal.SIGTERM)
  for one in five:
    _, printed = one.communicate(timeout=120)
    assert one.returncode == (75 if one is runs else 2), printed
    if one is not runs:
      assert f'in use by process {runs.pid} on host' in printed
      assert 'Traceback' not in printed


TWICE = """
import pathlib, sys, threading, time
from configs import quickstart
from dnal_jax import errors, train
from dnal_jax.config import parse_config

config = quickstart.get_config()
for stage, epochs in (('warmup', 1), ('search', 2), ('finetune', 1)):
  config.stages[stage].epochs = epochs
config = config.to_dict()
folder = pathlib.Path(sys.argv[1])

def run(name):
  return train.run(parse_config(config), config, folder / name)

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


@pytest.mark.long
def test_one_process_can_run_again_but_not_twice_at_once(tmp_path):
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
def test_a_run_that_is_taken_over_ends_without_writing(tmp_path):
  """A machine that was suspended may find that another has taken over."""
  workdir = tmp_path / 'run'
  first = start(workdir, *LONG)
  until(first, 'warmup 1/')
  leave(workdir, **ELSEWHERE)
  _, printed = first.communicate(timeout=120)
  assert first.returncode == 2
  assert 'was taken over by process 7 on host other' in printed
  assert lock.holder(workdir).token == 'dead'
  assert json.loads((workdir / 'status.json').read_text())['state'] == 'running'


@pytest.mark.slow
def test_both_processes_of_one_run_are_refused(tmp_path):
  """With the same message; neither waits for the other or reports it lost."""
  workdir = tmp_path / 'run'
  with lock.Lock(workdir):
    for code, _, printed in Processes(*[command(workdir)] * 2).ended():
      assert code == 2
      assert f'in use by process {os.getpid()} on host' in printed


IMPATIENT = """
import runpy
from dnal_jax.workdir import lock
lock.STALE_SECONDS = 40.0
runpy.run_module('dnal_jax.main', run_name='__main__', alter_sys=True)
"""


@pytest.mark.long
def test_both_processes_of_one_run_wait_for_another_host(tmp_path):
  """For longer than the 30 s after which a process that does not answer the
  others counts as lost."""
  workdir = tmp_path / 'run'
  leave(workdir, **ELSEWHERE)
  python, _, _, *flags = command(workdir, *LONG)
  processes = Processes(*[(python, '-c', IMPATIENT, *flags)] * 2)
  processes.until(f"'{workdir}' was left locked by process 7 on host other")
  processes.until('warmup 1/')
  processes.all[1].send_signal(signal.SIGTERM)
  assert [code for code, _, _ in processes.ended()] == [75, 75]
