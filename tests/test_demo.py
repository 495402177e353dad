"""The demo: what it learns, and what its folder is good for."""

import json
import re
import signal

from commands import (
  KEYS,
  ROOT,
  assert_same,
  metrics,
  result,
  succeed,
)
import jax
import pytest
from signalling import check_stopped, start_and_signal_at

import dnal_jax
from dnal_jax.cost import exact
from dnal_jax.data import memory

DEMO = '--config.target.macs=0.1'


@pytest.fixture(scope='session')
def demo(tmp_path_factory):
  """The demo, undisturbed: (folder, what it printed)."""
  workdir = tmp_path_factory.mktemp('demo') / 'run'
  return workdir, succeed(workdir, DEMO, '--uniform')


@pytest.mark.slow
@pytest.mark.xdist_group('demo')
def test_demo_learns_a_small_network(demo):
  workdir, printed = demo
  got = result(workdir)
  assert set(got) == KEYS
  limit = got['baseline']['macs'] // 10
  assert 0.99 * limit <= got['learned']['macs'] <= limit
  makefile = (ROOT / 'Makefile').read_text()
  flags = f'{DEMO} --uniform --workdir=runs/demo'
  assert f'--config=configs/quickstart.py {flags}' in makefile
  assert got['top1']['final'] >= got['top1']['warmup'] - 0.01
  assert got['top1']['pruned'] == got['top1']['compact']
  assert got['test_top1'] > 0.95
  assert [s['steps'] for s in got['stages']] == [170, 170, 510]
  assert 'reference macs' in printed
  for command in ('summary', 'predict'):
    assert f'-m dnal_jax.{command} {workdir}' in printed
  assert len(metrics(workdir)) == 50


@pytest.mark.slow
@pytest.mark.xdist_group('demo')
def test_a_uniform_network_of_the_same_cost_stands_beside(demo):
  """Trained for as many epochs."""
  workdir, printed = demo
  mine, uniform = result(workdir), result(workdir / 'uniform')
  epochs = [sum(s['epochs'] for s in one['stages']) for one in (mine, uniform)]
  assert epochs == [50, 50]
  limit = mine['target']['macs']['limit']
  assert uniform['target']['macs']['limit'] == limit
  assert 0.99 * limit <= uniform['learned']['macs'] <= limit
  shares = [left / full for full, left in uniform['widths'].values()]
  assert max(shares) - min(shares) < 0.05
  for name, one in (('searched', mine), ('uniform', uniform)):
    (line,) = re.findall(rf'^{name} .*$', printed, re.M)
    assert f' {one["learned"]["macs"]:,} macs' in line
    assert line.endswith(f'test {one["test_top1"]:.2%}')


@pytest.mark.slow
@pytest.mark.xdist_group('demo')
def test_finished_run_says_so_and_does_nothing(demo):
  workdir, _ = demo
  files = {f: f.stat().st_mtime_ns for f in workdir.rglob('*')}
  assert 'is finished; nothing to do' in succeed(workdir, DEMO)
  assert {f: f.stat().st_mtime_ns for f in workdir.rglob('*')} == files


@pytest.mark.slow
@pytest.mark.xdist_group('demo')
def test_loaded_network_is_the_one_that_was_measured(demo):
  """By the documentation's own example."""
  workdir, _ = demo
  page = (ROOT / 'docs' / 'getting-started.md').read_text()
  found = re.search(
    r'^import dnal_jax\nfrom [^`]*?^print.*?$', page, re.M | re.S
  )
  assert found
  example = found[0].replace('runs/demo', str(workdir))
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


@pytest.mark.slow
@pytest.mark.xdist_group('demo')
def test_predictions_are_those_that_were_measured(demo):
  """For the test images as scikit-learn has them."""
  workdir, _ = demo
  model, raw = dnal_jax.load(workdir), memory._digits()
  assert model.class_names == tuple('0123456789')
  labels = model.predict(raw['test_images']).logits.argmax(1)
  top1 = (labels == raw['test_labels']).mean()
  assert top1 == pytest.approx(result(workdir)['test_top1'], abs=1e-9)


def _leaves(tree):
  for value in tree.values():
    yield from _leaves(value) if isinstance(value, dict) else (value,)


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
    code, _ = start_and_signal_at(killed, line, signal.SIGKILL, flags=[DEMO])
    assert code == -signal.SIGKILL
  assert 'going on with' in succeed(killed, DEMO)
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
    code, message = start_and_signal_at(stopped, line, number, flags=[DEMO])
    check_stopped(code, message, line.split()[0])
  succeed(stopped, DEMO)
  assert_same(stopped, demo[0])
