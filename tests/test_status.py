"""Where a run is, told by its folder: while it runs, and however it ended."""

import itertools
import json
import signal
import socket
import subprocess
import sys
import time

from commands import LONG, ROOT, SHORT, command, start, succeed, until
from locking import ELSEWHERE, leave
import pytest

from configs import quickstart
from dnal_jax import errors, status
from dnal_jax.config import parse_config
from dnal_jax.workdir import json_files, lock, status_file


def ask(*arguments):
  return subprocess.run(
    (sys.executable, '-m', 'dnal_jax.status', *map(str, arguments)),
    cwd=ROOT,
    capture_output=True,
    text=True,
    check=False,
  )


def told(workdir):
  """(what people read, what programs do) of one folder."""
  text, value = ask(workdir), ask(workdir, '--json')
  assert (text.returncode, value.returncode) == (0, 0), text.stderr
  return text.stdout, json.loads(value.stdout)


@pytest.mark.slow
def test_running_stopped_killed_and_finished(tmp_path):
  workdir = tmp_path / 'run'
  run = start(workdir, *LONG)
  until(run, 'warmup 9/')
  text, value = told(workdir)
  who = f'process {run.pid} on host {socket.gethostname()}'
  assert text.startswith(f'{workdir}: running, {who}\n')
  assert 'warmup, 1 of 3: epoch ' in text
  assert '(estimates)' in text
  assert set(value) == status_file.KEYS | {'workdir', 'now', 'heard'}
  assert value['now'] == value['state'] == 'running'
  assert value['pid'] == run.pid
  assert value['step'] == value['run_step'] >= 8 * 17
  assert value['steps'] == 17000
  assert value['run_steps'] == 17000 + 170 + 510
  assert value['images_per_second'] > 0
  assert value['seconds_left']['run'] > value['seconds_left']['stage'] > 0
  assert value['checkpoint']['number'] >= 17
  assert value['loss'] > 0
  assert 0 < value['validation_top1'] <= 1

  run.send_signal(signal.SIGTERM)
  run.communicate(timeout=120)
  text, value = told(workdir)
  assert value['now'] == value['state'] == 'stopped'
  assert 'the same command goes on from there' in text
  assert 'left' not in text
  # What was saved is what is told of: on stopping, all that was done.
  assert value['checkpoint']['number'] == value['run_step']

  run = start(workdir, *LONG)
  until(run, 'warmup ')
  run.kill()
  run.communicate()
  text, value = told(workdir)
  gone = f'process {run.pid} on host {socket.gethostname()} is gone'
  assert f'not running ({gone}); the same command goes on' in text
  assert (value['now'], value['state']) == ('not running', 'running')

  short = tmp_path / 'short'
  succeed(short, *SHORT)
  text, value = told(short)
  assert text.startswith(f'{short}: finished\n')
  assert value['run_step'] == value['run_steps'] == 4 * 17
  assert value['seconds_left'] == {'stage': 0.0, 'run': 0.0}
  lines = ask(workdir, short).stdout.splitlines()
  assert lines[0].split()[:3] == ['now', 'stage', 'epoch']
  assert lines[1].startswith(f'{workdir} ')
  assert ' not running  warmup 1/3 ' in lines[1]
  assert lines[2].startswith(f'{short}')
  assert 'finished' in lines[2]
  assert '68/68' in lines[2]


@pytest.mark.slow
def test_failed_run_tells_why_and_two_folders_at_once(tmp_path):
  workdir = tmp_path / 'run'
  flag = '--config.stages.warmup.train.weights.lr.base=1e30'
  done = subprocess.run(
    command(workdir, flag), cwd=ROOT, capture_output=True, check=False
  )
  assert done.returncode == 2
  text, value = told(workdir)
  assert value['now'] == 'failed'
  assert 'failed: the loss is nan, not finite in stage' in text
  asked = ask(workdir, tmp_path / 'none')
  assert asked.returncode == 2
  assert 'failed' in asked.stdout
  assert f"no run in '{tmp_path}/none'" in asked.stderr


def test_no_run_is_one_message(tmp_path):
  for arguments, message in (
    ((tmp_path,), f"no run in '{tmp_path}'"),
    ((), 'name the folder of a run'),
  ):
    asked = ask(*arguments)
    assert asked.returncode == 2
    (line,) = asked.stderr.splitlines()
    assert line.startswith(f'error: {message}')
    assert not asked.stdout
  (tmp_path / 'status.json').write_text('{"state": "running"}')
  with pytest.raises(errors.UserError, match=r'not a status\.json of ours'):
    status.read(tmp_path)


PARSED = parse_config(quickstart.get_config().to_dict())
METRICS = {'loss': 32.0}


@pytest.fixture
def clock(monkeypatch):
  """Seconds that pass when a test says so."""
  now = [0.0]
  monkeypatch.setattr(time, 'perf_counter', lambda: now[0])
  return now


def test_figures_are_those_of_the_steps_that_were_measured(tmp_path, clock):
  """Batches of 64; 10, 10 and 30 epochs of 17 steps."""
  with (
    lock.Lock(tmp_path) as held,
    status_file.StatusFile(PARSED, tmp_path, held, 17) as run,
  ):
    assert status.read(tmp_path)['stage'] is None  # it starts
    run.stage(1, 5)
    clock[0] += 100.0  # compiling, which says nothing of speed
    run.steps(4, METRICS)
    first = status.read(tmp_path)
    assert (first['step'], first['epoch'], first['loss']) == (9, 1, 0.5)
    assert first['seconds_left'] == {'stage': None, 'run': None}
    clock[0] += 6.0
    run.steps(8, METRICS)
    clock[0] += 2.0  # evaluation
    run.epoch(0.75)
    now = status.read(tmp_path)
    assert (now['stage'], now['stage_number']) == ('search', 2)
    assert (now['step'], now['steps']) == (17, 170)
    assert (now['epoch'], now['epochs']) == (2, 10)
    assert (now['run_step'], now['run_steps']) == (187, 850)
    assert now['images_per_second'] == pytest.approx(8 * 64 / 6)
    assert now['seconds_left'] == pytest.approx(
      {'stage': 153 * 1.0, 'run': (153 + 510) * 1.0}
    )
    assert now['validation_top1'] == 0.75
    text = status.text(now)
    assert 'search, 2 of 3: epoch 2 of 10, step 17 of 170' in text
    assert 'about 2 min 33 s of the stage, 11 min 3 s of the run' in text
  assert status.read(tmp_path)['now'] == 'finished'


def test_writing_takes_a_hundredth_of_the_time_at_most(
  tmp_path, clock, monkeypatch
):
  """Where a file takes half a second, and an epoch three."""
  written = []

  def slowly(*arguments, **kwargs):
    clock[0] += 0.5
    written.append(clock[0])

  with (
    lock.Lock(tmp_path) as held,
    status_file.StatusFile(PARSED, tmp_path, held, 17) as run,
  ):
    monkeypatch.setattr(json_files, 'write_json', slowly)
    run.stage(0, 0)
    for _ in range(100):
      for _ in range(3):
        clock[0] += 1.0
        run.steps(1, METRICS)
      run.epoch(0.5)
    monkeypatch.undo()
  assert len(written) > 5
  gaps = [b - a - 0.5 for a, b in itertools.pairwise(written)]
  assert min(gaps) >= 0.5 / 0.01


def test_what_cannot_be_written_is_told_once(tmp_path, capsys):
  (tmp_path / 'status.json').mkdir()
  with (
    lock.Lock(tmp_path) as held,
    status_file.StatusFile(PARSED, tmp_path, held, 17) as run,
  ):
    for stage in range(3):
      run.stage(stage, 0)
  told = capsys.readouterr().err
  assert told.count('warning: ') == 1
  assert 'cannot be written' in told
  assert 'the run goes on' in told


def test_one_on_another_host_is_heard_of_or_not(tmp_path):
  with (
    lock.Lock(tmp_path) as held,
    status_file.StatusFile(PARSED, tmp_path, held, 17) as run,
  ):
    run.stage(0, 0)
    value = json_files.read_json(tmp_path / 'status.json')
  json_files.write_json(tmp_path / 'status.json', {**value, 'host': 'other'})
  leave(tmp_path, **ELSEWHERE, heard=lock._now('microseconds'))
  row = status.read(tmp_path)
  assert row['now'] == 'running'
  assert row['heard'] < 60
  assert 'on host other, heard of ' in status.text(row)
  leave(tmp_path, **ELSEWHERE, heard='2000-01-01T00:00:00.000000+00:00')
  row = status.read(tmp_path)
  assert row['now'] == 'not heard of'
  assert 'if it is dead, the same command' in status.text(row)


def test_who_was_taken_over_leaves_the_file_alone(tmp_path):
  path = tmp_path / 'status.json'

  def taken_over():
    with (
      lock.Lock(tmp_path) as held,
      status_file.StatusFile(PARSED, tmp_path, held, 17) as run,
    ):
      leave(tmp_path, **ELSEWHERE)
      path.write_text("the other's")
      run.stage(0, 0)

  with pytest.raises(errors.UserError, match='taken over'):
    taken_over()
  assert path.read_text() == "the other's"


@pytest.mark.parametrize(
  ('seconds', 'words'),
  [
    (-1, '0 s'),
    (0.4, '0 s'),
    (59.6, '1 min'),
    (125, '2 min 5 s'),
    (3600, '1 h'),
    (3605, '1 h'),
    (90000, '1 d 1 h'),
  ],
)
def test_span(seconds, words):
  assert status.span(seconds) == words
