"""Runs that are stopped or killed end as if nothing had happened to them."""

import json
import re
import signal

from commands import (
  SHORT,
  assert_same,
  ignoring,
  succeed,
)
import in_process
import pytest
from signalling import check_stopped, start_and_signal_at

from dnal_jax import errors


@pytest.fixture(scope='session')
def alone(tmp_path_factory):
  """The folder of a run of SHORT that nothing has interrupted."""
  workdir = tmp_path_factory.mktemp('alone') / 'run'
  in_process.run(workdir, *SHORT)
  return workdir


@pytest.mark.slow
@pytest.mark.xdist_group('run')
def test_signals_to_a_process(alone, tmp_path):
  """SIGKILL in the search, its terminal is closed after the cut, then to the
  end: the files are those of the run that nothing has interrupted."""
  hurt, kill, close = tmp_path / 'run', signal.SIGKILL, signal.SIGHUP
  code, _ = start_and_signal_at(hurt, 'search 1/', kill, flags=SHORT)
  assert code == -kill
  code, _ = start_and_signal_at(
    hurt, 'pruned to', close, flags=SHORT, hang_up=True
  )
  row = json.loads((hurt / 'status.json').read_text())
  assert row['state'] == 'stopped'
  check_stopped(code, row['message'], 'finetune')
  assert 'going on with' in succeed(hurt, *SHORT)
  assert_same(hurt, alone)


@pytest.mark.long
@pytest.mark.xdist_group('run')
def test_interrupted_at_any_line(alone, tmp_path, capsys):
  """In each stage, and right after the cut, before and after its first
  checkpoint. An epoch has 17 steps, so the newest one is 2 steps old."""
  flags, workdir = (*SHORT, '--config.checkpoint_steps=5'), tmp_path / 'run'
  for line in (
    'warmup 1/',
    'search 1/',
    'search 2/',
    'pruned to',
    'finetune 1/',
  ):
    at = in_process.at_line(line, in_process.kill)
    with at, pytest.raises(in_process.Killed):
      in_process.run(workdir, *flags)
    assert not (workdir / 'result.json').exists()
  in_process.run(workdir, *flags)
  assert capsys.readouterr().out.count('going on with') == 5
  assert_same(workdir, alone)


@pytest.mark.slow
@pytest.mark.xdist_group('run')
def test_stopped_by_signals(alone, tmp_path, capsys):
  """In the first steps after the line, within an epoch."""
  workdir = tmp_path / 'run'
  for line, number, stage in (
    ('warmup 1/', signal.SIGTERM, 'search'),
    ('search 1/', signal.SIGINT, 'search'),
    ('pruned to', signal.SIGHUP, 'finetune'),
  ):
    at = in_process.at_line(line, in_process.send(number))
    with ignoring(), at, pytest.raises(errors.Stopped) as stopped:
      in_process.run(workdir, *SHORT)
    assert f"stopped and saved in '{stage}'" in str(stopped.value)
    assert 'the same command goes on' in str(stopped.value)
  in_process.run(workdir, *SHORT)
  assert capsys.readouterr().out.count('going on with') == 3
  assert_same(workdir, alone)


@pytest.mark.slow
def test_a_second_signal_ends_it_at_once(tmp_path):
  signals = (signal.SIGTERM, signal.SIGINT)
  code, message = start_and_signal_at(
    tmp_path / 'run', 'warmup 1/', *signals, flags=SHORT
  )
  assert -code in signals
  assert 'leaving at once' in message
  assert 'stopped and saved' not in message


@pytest.mark.long
@pytest.mark.xdist_group('run')
def test_profile_traces_each_stage_and_changes_nothing(alone, tmp_path, capsys):
  """The ten largest costs, by the names of layers; 17 steps an epoch."""
  in_process.run(tmp_path / 'traced', *SHORT, '--config.profile=20')
  printed = capsys.readouterr().out
  for stage in ('warmup', 'search', 'finetune'):
    found = re.search(
      rf'^{stage}: 16 steps traced .*\n((?:.* ms .*\n){{10}})', printed, re.M
    )
    assert found, printed
    costs = found[1].splitlines()
    assert len(costs) == 10
    assert any('conv' in line for line in costs), costs
    shares = [float(re.search(r'([\d.]+)%', line)[1]) for line in costs]
    assert shares == sorted(shares, reverse=True)
    assert 10 < sum(shares) <= 100
    assert list((tmp_path / 'traced/profile' / stage).rglob('*.xplane.pb'))
  assert_same(tmp_path / 'traced', alone)
