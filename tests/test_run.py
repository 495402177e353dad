"""Whole runs through the command line: real data, real files, real kills."""

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
  metrics,
  result,
  succeed,
)
import jax
import numpy as np
import pytest

import dnal_jax
from dnal_jax.cost import exact


@pytest.fixture(scope='module')
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


def start_and_signal_at(workdir, line, *signals):
  """Runs until `line` is printed, then signals the whole process group, which
  ends within 30 seconds; the exit code, and what was told as an error."""
  process = subprocess.Popen(
    command(workdir),
    cwd=ROOT,
    stdout=subprocess.PIPE,
    stderr=subprocess.PIPE,
    text=True,
    env={**os.environ, 'PYTHONUNBUFFERED': '1'},
    start_new_session=True,
  )
  assert process.stdout is not None
  seen = any(printed.startswith(line) for printed in process.stdout)
  if process.poll() is None:
    for number in signals:
      os.killpg(process.pid, number)
  try:
    _, told = process.communicate(timeout=30)
  except subprocess.TimeoutExpired:
    os.killpg(process.pid, signal.SIGKILL)
    raise
  assert seen, f'never printed {line!r}'
  return process.returncode, told


@pytest.mark.slow
@pytest.mark.xdist_group('demo')
def test_killed_runs_end_as_if_undisturbed(demo, tmp_path):
  """Once in each stage, and right after the cut, before and after its first
  checkpoint: what is left at the end is the same to the last digit."""
  killed = tmp_path / 'run'
  for line in (
    'warmup 4/',
    'search 6/',
    'cut to',
    'finetune 1/',
    'finetune 9/',
  ):
    code, _ = start_and_signal_at(killed, line, signal.SIGKILL)
    assert code == -signal.SIGKILL
  assert 'going on with' in succeed(killed)
  assert_same(killed, demo[0])


@pytest.mark.slow
@pytest.mark.xdist_group('demo')
def test_stopped_runs_save_and_go_on_as_if_undisturbed(demo, tmp_path):
  """By a signal in each stage, within an epoch."""
  stopped = tmp_path / 'run'
  for line, number in (
    ('warmup 4/', signal.SIGTERM),
    ('search 3/', signal.SIGTERM),
    ('search 6/', signal.SIGINT),
    ('finetune 9/', signal.SIGTERM),
  ):
    code, told = start_and_signal_at(stopped, line, number)
    assert code == 75, told
    stage = line.split()[0]
    assert f"stopped and saved in '{stage}'" in told
    assert 'the same command goes on' in told
    assert 'Traceback' not in told
  succeed(stopped)
  assert_same(stopped, demo[0])


@pytest.mark.slow
def test_a_second_signal_leaves_at_once(tmp_path):
  signals = (signal.SIGTERM, signal.SIGINT)
  code, told = start_and_signal_at(tmp_path / 'run', 'warmup 2/', *signals)
  assert -code in signals
  assert 'once more leaves at once' in told
  assert 'stopped and saved' not in told


@pytest.mark.slow
def test_residual_networks_run_too(tmp_path):
  """And MobileNetV2 does in test_imagenet.py."""
  succeed(tmp_path / 'run', *SHORT, '--config.network.name=resnet8_digits')
  got = result(tmp_path / 'run')
  assert got['network'] == 'resnet8_digits'
  assert got['learned']['macs'] < got['baseline']['macs']
  assert got['top1']['pruned'] == got['top1']['compact']


@pytest.mark.slow
def test_baseline_is_a_list_of_one_stage(tmp_path):
  workdir = tmp_path / 'run'
  flags = ('--config.stages.baseline.epochs=2',)
  succeed(workdir, *flags, config='configs/quickstart.py:baseline')
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
  """What was searched is kept while another stage trains weights."""
  order = "--config.order=('warmup','search','baseline','finetune')"
  flags = (*SHORT, '--config.stages.baseline.epochs=1', order)
  succeed(tmp_path / 'run', *flags)
  got = result(tmp_path / 'run')
  rows = metrics(tmp_path / 'run')
  (after_search,) = (
    r for r in rows if (r['stage'], r['epoch']) == ('search', 2)
  )
  assert got['gates']['kept'] == after_search['gates']['high'] < 448


@pytest.mark.slow
def test_search_alone_and_cut_without_finetuning(tmp_path):
  flags = ('--config.stages.search.epochs=2', "--config.order=('search',)")
  succeed(tmp_path / 'soft', *flags)
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
  succeed(tmp_path / 'cut', *flags)
  architecture = json.loads((tmp_path / 'cut/architecture.json').read_text())
  widths = [len(ids) for ids in architecture['gates'].values()]
  assert [n % 8 for n in widths] == [0] * 6
  assert 0 < sum(widths) < 448
  got = result(tmp_path / 'cut')
  assert got['stages'][1]['train_loss'] is None
  assert got['top1']['final'] == got['top1']['compact']


@pytest.mark.slow
def test_profile_traces_each_stage_and_changes_nothing(tmp_path):
  """The ten largest costs, by the names of layers; 17 steps an epoch."""
  succeed(tmp_path / 'plain', *SHORT)
  told = succeed(tmp_path / 'traced', *SHORT, '--config.profile=20')
  for stage in ('warmup', 'search', 'finetune'):
    found = re.search(
      rf'^{stage}: 16 steps traced .*\n((?:.* ms .*\n){{10}})', told, re.M
    )
    assert found, told
    costs = found[1].splitlines()
    assert len(costs) == 10
    assert any('conv' in line for line in costs), costs
    shares = [float(re.search(r'([\d.]+)%', line)[1]) for line in costs]
    assert shares == sorted(shares, reverse=True)
    assert 10 < sum(shares) <= 100
    assert list((tmp_path / 'traced/profile' / stage).rglob('*.xplane.pb'))
  assert result(tmp_path / 'traced') == result(tmp_path / 'plain')
  assert metrics(tmp_path / 'traced') == metrics(tmp_path / 'plain')


@pytest.mark.slow
def test_two_search_rounds_are_a_longer_list(tmp_path):
  """A second search and cut, of what the first has left."""
  config = tmp_path / 'two_rounds.py'
  config.write_text(
    'import copy\n'
    'from configs import quickstart\n'
    'def get_config():\n'
    '  config = quickstart.get_config()\n'
    '  for name in ("search", "finetune"):\n'
    '    config.stages[name].epochs = 2\n'
    '    config.stages[name + "2"] = copy.deepcopy(config.stages[name])\n'
    '  config.order += ("search2", "finetune2")\n'
    '  return config\n'
  )
  workdir = tmp_path / 'run'
  succeed(workdir, '--config.penalty=0.02', config=config)
  got = result(workdir)
  names = ['warmup', 'search', 'finetune', 'search2', 'finetune2']
  assert [s['name'] for s in got['stages']] == names
  assert got['compact_max_abs_diff'] < 1e-3
  net, _ = dnal_jax.load(workdir)
  assert exact.count(net, (8, 8, 1)).macs == got['learned']['macs']
