"""status.json and its command: while a run goes on, and however it ended."""

import itertools
import json
import signal
import socket
import time

from commands import LONG, SHORT, fail_here, run_here, start, succeed, until
from locking import ELSEWHERE, leave
import pytest

from configs import quickstart
from dnal_jax import errors, status
from dnal_jax.config import parse_config
from dnal_jax.workdir import json_files, lock, status_file


def shown(workdir):
  """(text, parsed JSON) that the command prints for one folder."""
  text = run_here(status, workdir)
  value = run_here(status, workdir, '--json')
  assert (text.code, value.code) == (0, 0), text.err
  return text.out, json.loads(value.out)


@pytest.mark.long
def test_running_stopped_killed_and_finished(tmp_path):
  workdir = tmp_path / 'run'
  run = start(workdir, *LONG)
  until(run, 'warmup 9/')
  text, value = shown(workdir)
  who = f'process {run.pid} on host {socket.gethostname()}'
  assert text.startswith(f'{workdir}: running, {who}\n')
  assert 'warmup, 1 of 3: epoch ' in text
  assert '(estimates)' in text
  assert set(value) == status_file.KEYS | {
    *('workdir', 'now', 'seconds_since_heartbeat'),
  }
  assert value['now'] == value['state'] == 'running'
  assert value['pid'] == run.pid
  assert value['step'] == value['run_step'] > 0  # up to some seconds old
  assert value['steps'] == 17000
  assert value['run_steps'] == 17000 + 170 + 510
  assert value['images_per_second'] > 0
  assert value['seconds_left']['run'] > value['seconds_left']['stage'] > 0
  assert value['checkpoint']['number'] >= 17
  assert value['loss'] > 0
  assert 0 < value['validation_top1'] <= 1

  run.send_signal(signal.SIGTERM)
  run.communicate(timeout=120)
  text, value = shown(workdir)
  assert value['now'] == value['state'] == 'stopped'
  assert 'the same command goes on from there' in text
  assert 'left' not in text
  # A stopped run has saved all of its steps.
  assert value['checkpoint']['number'] == value['run_step']

  run = start(workdir, *LONG)
  until(run, 'warmup ')
  run.kill()
  run.communicate()
  text, value = shown(workdir)
  gone = f'process {run.pid} on host {socket.gethostname()} is gone'
  assert f'not running ({gone}); the same command goes on' in text
  assert (value['now'], value['state']) == ('not running', 'running')

  short = tmp_path / 'short'
  succeed(short, *SHORT)
  text, value = shown(short)
  assert text.startswith(f'{short}: finished\n')
  assert value['run_step'] == value['run_steps'] == 4 * 17
  assert value['seconds_left'] == {'stage': 0.0, 'run': 0.0}
  lines = run_here(status, workdir, short).out.splitlines()
  assert lines[0].split()[:3] == ['now', 'stage', 'epoch']
  assert lines[1].startswith(f'{workdir} ')
  assert ' not running  warmup 1/3 ' in lines[1]
  assert lines[2].startswith(f'{short}')
  assert 'finished' in lines[2]
  assert '68/68' in lines[2]


@pytest.mark.slow
def test_failed_run_says_why_and_a_missing_one_is_an_error(tmp_path):
  workdir = tmp_path / 'run'
  fail_here(workdir, '--config.stages.warmup.train.weights.lr.base=1e30')
  text, value = shown(workdir)
  assert value['now'] == 'failed'
  assert 'failed: the loss is nan, not finite in stage' in text
  both = run_here(status, workdir, tmp_path / 'none')
  assert both.code == 2
  assert 'failed' in both.out
  assert f"no run in '{tmp_path}/none'" in both.err


def test_no_run_is_one_message(tmp_path):
  for arguments, message in (
    ((tmp_path,), f"no run in '{tmp_path}'"),
    ((), 'name the folder of a run'),
  ):
    ended = run_here(status, *arguments)
    assert ended.code == 2
    (line,) = ended.err.splitlines()
    assert line.startswith(f'error: {message}')
    assert not ended.out
  (tmp_path / 'status.json').write_text('{"state": "running"}')
  with pytest.raises(errors.UserError, match=r'lacks keys of a status\.json'):
    status.read(tmp_path)


PARSED = parse_config(quickstart.get_config().to_dict())
METRICS = {'loss': 32.0}


@pytest.fixture
def clock(monkeypatch):
  """A performance counter that a test advances."""
  now = [0.0]
  monkeypatch.setattr(time, 'perf_counter', lambda: now[0])
  return now


def test_speed_is_that_of_the_steps_that_were_measured(tmp_path, clock):
  """Batches of 64; 10, 10 and 30 epochs of 17 steps."""
  with (
    lock.Lock(tmp_path) as held,
    status_file.StatusFile(PARSED, tmp_path, held, 17) as run,
  ):
    assert status.read(tmp_path)['stage'] is None  # it starts
    run.begin_stage(1, PARSED.stages[1], 5)
    clock[0] += 100.0  # compiling, which says nothing of speed
    run.on_steps(9, METRICS)
    first = status.read(tmp_path)
    assert (first['step'], first['epoch'], first['loss']) == (9, 1, 0.5)
    assert first['seconds_left'] == {'stage': None, 'run': None}
    clock[0] += 6.0
    run.on_steps(17, METRICS)
    clock[0] += 2.0  # evaluation
    run.end_epoch({'validation_top1': 0.75}, {})
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


def test_writing_takes_at_most_a_hundredth_of_the_time(
  tmp_path, clock, monkeypatch
):
  """Where writing a file takes half a second, and an epoch three seconds."""
  written = []

  def slowly(*arguments, **kwargs):
    clock[0] += 0.5
    written.append(clock[0])

  with (
    lock.Lock(tmp_path) as held,
    status_file.StatusFile(PARSED, tmp_path, held, 17) as run,
  ):
    monkeypatch.setattr(json_files, 'write_json', slowly)
    run.begin_stage(0, PARSED.stages[0], 0)
    done = 0
    for _ in range(100):
      for _ in range(3):
        clock[0] += 1.0
        done += 1
        run.on_steps(done, METRICS)
      run.end_epoch({'validation_top1': 0.5}, {})
    monkeypatch.undo()
  assert len(written) > 5
  gaps = [b - a - 0.5 for a, b in itertools.pairwise(written)]
  assert min(gaps) >= 0.5 / 0.01


def test_warns_once_if_it_cannot_be_written(tmp_path, capsys):
  (tmp_path / 'status.json').mkdir()
  with (
    lock.Lock(tmp_path) as held,
    status_file.StatusFile(PARSED, tmp_path, held, 17) as run,
  ):
    for stage in range(3):
      run.begin_stage(stage, PARSED.stages[stage], 0)
  printed = capsys.readouterr().err
  assert printed.count('warning: ') == 1
  assert 'cannot be written' in printed
  assert 'the run continues without it' in printed


def test_run_on_another_host_is_running_or_stale(tmp_path):
  with (
    lock.Lock(tmp_path) as held,
    status_file.StatusFile(PARSED, tmp_path, held, 17) as run,
  ):
    run.begin_stage(0, PARSED.stages[0], 0)
    value = json_files.read_json(tmp_path / 'status.json')
  json_files.write_json(tmp_path / 'status.json', {**value, 'host': 'other'})
  leave(tmp_path, **ELSEWHERE, heartbeat=lock._now('microseconds'))
  row = status.read(tmp_path)
  assert row['now'] == 'running'
  assert 0 <= row['seconds_since_heartbeat'] < 60
  assert 'on host other, last heartbeat ' in status.text(row)
  leave(tmp_path, **ELSEWHERE, heartbeat='2000-01-01T00:00:00.000000+00:00')
  row = status.read(tmp_path)
  assert row['now'] == 'stale'
  assert 'no heartbeat of process' in status.text(row)
  assert 'if it is dead, the same command goes on' in status.text(row)


def test_a_run_that_is_taken_over_leaves_the_file_alone(tmp_path):
  path = tmp_path / 'status.json'

  def taken_over():
    with (
      lock.Lock(tmp_path) as held,
      status_file.StatusFile(PARSED, tmp_path, held, 17) as run,
    ):
      leave(tmp_path, **ELSEWHERE)
      path.write_text("the other's")
      run.begin_stage(0, PARSED.stages[0], 0)

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
