"""Whole runs: real data, real files, real signals."""

import copy
import json
import os
import re
import signal
import subprocess
import textwrap

from commands import (
  KEYS,
  ROOT,
  SHORT,
  assert_same,
  command,
  ignoring,
  metrics,
  result,
  succeed,
)
import in_process
import jax
import numpy as np
import pytest

from configs import quickstart
import dnal_jax
from dnal_jax import errors, train
from dnal_jax.config import parse_config
from dnal_jax.cost import exact


@pytest.fixture(scope='session')
def demo(tmp_path_factory):
  """The demo, undisturbed: (folder, what it printed)."""
  workdir = tmp_path_factory.mktemp('demo') / 'run'
  return workdir, succeed(workdir)


@pytest.mark.slow
@pytest.mark.xdist_group('demo')
def test_demo_learns_a_small_network(demo):
  workdir, printed = demo
  got = result(workdir)
  assert set(got) == KEYS
  assert got['baseline']['macs'] >= 5 * got['learned']['macs']
  assert got['top1']['final'] >= got['top1']['warmup'] - 0.01
  assert got['top1']['pruned'] == got['top1']['compact']
  assert got['test_top1'] > 0.95
  assert [s['steps'] for s in got['stages']] == [170, 170, 510]
  assert 'reference macs' in printed
  assert '-m dnal_jax.summary --architecture=' in printed
  assert len(metrics(workdir)) == 50


@pytest.mark.slow
@pytest.mark.xdist_group('demo')
def test_finished_run_says_so_and_does_nothing(demo):
  workdir, _ = demo
  files = {f: f.stat().st_mtime_ns for f in workdir.rglob('*')}
  assert 'is finished; nothing to do' in succeed(workdir)
  assert {f: f.stat().st_mtime_ns for f in workdir.rglob('*')} == files


@pytest.mark.slow
@pytest.mark.xdist_group('demo')
def test_loaded_network_is_the_one_that_was_measured(demo):
  """By the README's own example."""
  workdir, _ = demo
  readme = (ROOT / 'README.md').read_text()
  found = re.search(
    r'^    import dnal_jax\n.*?^    print.*?$', readme, re.M | re.S
  )
  assert found
  example = textwrap.dedent(found[0]).replace('runs/demo', str(workdir))
  *lines, last = example.splitlines()
  names = {}
  exec('\n'.join(lines), names)
  top1 = eval(last.removeprefix('print'), names)
  assert float(top1) == pytest.approx(result(workdir)['test_top1'], abs=1e-6)
  counts = exact.count(names['net'], (8, 8, 1))
  assert counts.params == result(workdir)['learned']['params']
  assert counts.macs == result(workdir)['learned']['macs']
  weights = sum(a.size for a in _leaves(names['variables']['params']))
  assert weights == counts.params
  versions = json.loads((workdir / 'config.json').read_text())['versions']
  assert versions['jax'] == jax.__version__


def _leaves(tree):
  for value in tree.values():
    yield from _leaves(value) if isinstance(value, dict) else (value,)


@pytest.fixture(scope='session')
def alone(tmp_path_factory):
  """The folder of a run of SHORT that nothing has interrupted."""
  workdir = tmp_path_factory.mktemp('alone') / 'run'
  in_process.run(workdir, *SHORT)
  return workdir


def start_and_signal_at(workdir, line, *signals, flags=(), hang_up=False):
  """Runs until `line` is printed, then signals the whole process group.

  With `hang_up`, nothing that the process prints can be written from then on.
  It must end within 30 seconds; returns its exit code and its stderr.
  """
  with ignoring():
    process = subprocess.Popen(
      command(workdir, *flags),
      cwd=ROOT,
      stdout=subprocess.PIPE,
      stderr=subprocess.PIPE,
      text=True,
      env={**os.environ, 'PYTHONUNBUFFERED': ''},
      start_new_session=True,
    )
  seen = any(printed.startswith(line) for printed in process.stdout)
  if hang_up:
    process.stdout.close()
    process.stderr.close()
  if process.poll() is None:
    for number in signals:
      os.killpg(process.pid, number)
  message = ''
  try:
    if hang_up:
      process.wait(timeout=30)
    else:
      _, message = process.communicate(timeout=30)
  except subprocess.TimeoutExpired:
    os.killpg(process.pid, signal.SIGKILL)
    raise
  assert seen, f'never printed {line!r}'
  return process.returncode, message


def check_stopped(code, message, stage):
  """The exit code and the message of a run that a signal has stopped."""
  assert code == 75, message
  assert f"stopped and saved in '{stage}'" in message
  assert 'the same command goes on' in message
  assert 'Traceback' not in message


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


@pytest.mark.slow
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
    with at, pytest.raises(errors.Stopped) as stopped:
      in_process.run(workdir, *SHORT)
    assert f"stopped and saved in '{stage}'" in str(stopped.value)
    assert 'the same command goes on' in str(stopped.value)
  in_process.run(workdir, *SHORT)
  assert capsys.readouterr().out.count('going on with') == 3
  assert_same(workdir, alone)


@pytest.mark.long
@pytest.mark.xdist_group('demo')
def test_killed_demo_ends_as_if_undisturbed(demo, tmp_path):
  """The demo's processes, killed in each stage and around the cut."""
  killed = tmp_path / 'run'
  for line in (
    'warmup 4/',
    'search 6/',
    'pruned to',
    'finetune 1/',
    'finetune 9/',
  ):
    code, _ = start_and_signal_at(killed, line, signal.SIGKILL)
    assert code == -signal.SIGKILL
  assert 'going on with' in succeed(killed)
  assert_same(killed, demo[0])


@pytest.mark.long
@pytest.mark.xdist_group('demo')
def test_stopped_demo_saves_and_goes_on_as_if_undisturbed(demo, tmp_path):
  """The demo's processes, stopped by a signal in each stage."""
  stopped = tmp_path / 'run'
  for line, number in (
    ('warmup 4/', signal.SIGTERM),
    ('search 3/', signal.SIGTERM),
    ('search 6/', signal.SIGINT),
    ('finetune 9/', signal.SIGTERM),
  ):
    code, message = start_and_signal_at(stopped, line, number)
    check_stopped(code, message, line.split()[0])
  succeed(stopped)
  assert_same(stopped, demo[0])


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
def test_residual_networks_run_too(tmp_path):
  """And MobileNetV2 does in test_imagenet.py."""
  flags = (*SHORT, '--config.network.name=resnet8_digits')
  in_process.run(tmp_path / 'run', *flags)
  got = result(tmp_path / 'run')
  assert got['network'] == 'resnet8_digits'
  assert got['learned']['macs'] < got['baseline']['macs']
  assert got['top1']['pruned'] == got['top1']['compact']


@pytest.mark.slow
def test_baseline_is_a_list_of_one_stage(tmp_path):
  workdir = tmp_path / 'run'
  epochs = '--config.stages.baseline.epochs=1'
  in_process.run(workdir, epochs, variant='baseline')
  got = result(workdir)
  assert [s['name'] for s in got['stages']] == ['baseline']
  assert got['learned'] is None
  measured = {k for k, v in got['top1'].items() if v is not None}
  assert measured == {'final'}
  assert got['test_top1'] is not None
  net, _ = dnal_jax.load(workdir)
  assert exact.count(net, (8, 8, 1)).params == got['baseline']['params']


@pytest.mark.slow
def test_the_cut_may_come_later_than_the_search(tmp_path):
  """What the search has found is kept while another stage trains weights."""
  order = "--config.order=('warmup','search','baseline','finetune')"
  flags = (*SHORT, '--config.stages.baseline.epochs=1', order)
  in_process.run(tmp_path / 'run', *flags)
  got = result(tmp_path / 'run')
  rows = metrics(tmp_path / 'run')
  (after_search,) = (
    r for r in rows if (r['stage'], r['epoch']) == ('search', 2)
  )
  assert got['gates']['kept'] == after_search['gates']['high'] < 448


@pytest.mark.slow
def test_search_alone_and_cut_without_finetuning(tmp_path):
  flags = ('--config.stages.search.epochs=2', "--config.order=('search',)")
  in_process.run(tmp_path / 'soft', *flags)
  got = result(tmp_path / 'soft')
  assert got['learned'] is None
  assert got['gates']['kept'] is None
  assert got['top1']['final'] == got['top1']['gated']
  _, variables = dnal_jax.load(tmp_path / 'soft')
  assert not np.all(variables['gates']['gate1_1']['g'] == 1)
  flags = (
    *('--config.stages.search.epochs=2', '--config.stages.finetune.epochs=0'),
    "--config.order=('search','finetune')",
    '--config.stages.finetune.channel_multiple=8',
  )
  in_process.run(tmp_path / 'cut', *flags)
  architecture = json.loads((tmp_path / 'cut/architecture.json').read_text())
  widths = [len(ids) for ids in architecture['gates'].values()]
  assert [n % 8 for n in widths] == [0] * 6
  assert 0 < sum(widths) < 448
  got = result(tmp_path / 'cut')
  assert got['stages'][1]['train_loss'] is None
  assert got['top1']['final'] == got['top1']['compact']


@pytest.mark.slow
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


@pytest.mark.long
def test_two_search_rounds_are_a_longer_list(tmp_path):
  """A second search and cut, of what the first has left."""
  config = quickstart.get_config()
  for name in ('search', 'finetune'):
    config.stages[name].epochs = 2
    config.stages[name + '2'] = copy.deepcopy(config.stages[name])
  config.stages.warmup.epochs = 1
  config.order += ('search2', 'finetune2')
  config.penalty = 0.02
  workdir, values = tmp_path / 'run', config.to_dict()
  train.run(parse_config(values), values, workdir)
  got = result(workdir)
  names = ['warmup', 'search', 'finetune', 'search2', 'finetune2']
  assert [s['name'] for s in got['stages']] == names
  assert got['compact_max_abs_diff'] < 1e-3
  net, _ = dnal_jax.load(workdir)
  assert exact.count(net, (8, 8, 1)).macs == got['learned']['macs']
