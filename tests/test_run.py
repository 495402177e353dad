"""Whole runs through the command line: real data, real files, real kills."""

import json
import os
import pathlib
import signal
import subprocess
import sys

import numpy as np
import pytest

import dnal_jax
from dnal_jax import compact, errors, settings
from dnal_jax.data import batches, memory

ROOT = pathlib.Path(__file__).parent.parent
# A run of seconds: one epoch of warm-up, two of search, one of fine-tuning.
SHORT = (
  '--config.stages.warmup.epochs=1',
  '--config.stages.search.epochs=2',
  '--config.stages.finetune.epochs=1',
)
KEYS = {
  *('network', 'dataset', 'seed', 'stages', 'baseline', 'learned', 'gates'),
  *('top1', 'top5', 'compact_max_abs_diff', 'test_top1', 'test_top5'),
}


def command(workdir, *flags, config='configs/quickstart.py'):
  return (
    *(sys.executable, '-m', 'dnal_jax.main'),
    *(f'--config={config}', f'--workdir={workdir}', *flags),
  )


def main(workdir, *flags, **kwargs):
  return subprocess.run(
    command(workdir, *flags, **kwargs),
    cwd=ROOT,
    capture_output=True,
    text=True,
    check=False,
  )


def succeed(workdir, *flags, **kwargs):
  done = main(workdir, *flags, **kwargs)
  assert done.returncode == 0, done.stderr
  return done.stdout


def fail(workdir, *flags, **kwargs):
  """The one message of a command that must give up with exit code 2."""
  done = main(workdir, *flags, **kwargs)
  assert done.returncode == 2, (done.returncode, done.stdout, done.stderr)
  told = [n for n in done.stderr.splitlines() if n.startswith('error: ')]
  assert len(told) == 1, done.stderr
  assert 'Traceback' not in done.stderr
  return told[0]


def result(workdir):
  """result.json without the times."""
  value = json.loads((workdir / 'result.json').read_text())
  for stage in value['stages']:
    del stage['seconds']
  return value


def metrics(workdir):
  """metrics.jsonl without the times."""
  lines = (workdir / 'metrics.jsonl').read_text().splitlines()
  rows = [json.loads(n) for n in lines]
  return [{k: v for k, v in r.items() if 'per_second' not in k} for r in rows]


@pytest.fixture(scope='module')
def demo(tmp_path_factory):
  """The demo, undisturbed: (folder, what it printed)."""
  workdir = tmp_path_factory.mktemp('demo') / 'run'
  return workdir, succeed(workdir)


@pytest.mark.slow
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
  assert 'next: python -m dnal_jax.summary' in printed
  assert len(metrics(workdir)) == 50


@pytest.mark.slow
def test_finished_run_says_so_and_does_nothing(demo):
  workdir, _ = demo
  files = {f: f.stat().st_mtime_ns for f in workdir.rglob('*')}
  assert 'is finished; nothing to do' in succeed(workdir)
  assert {f: f.stat().st_mtime_ns for f in workdir.rglob('*')} == files


@pytest.mark.slow
def test_loaded_network_is_the_one_that_was_measured(demo):
  workdir, _ = demo
  net, variables = dnal_jax.load(workdir)
  told = json.loads((workdir / 'config.json').read_text())
  assert told['versions']['jax']
  data = settings.parse(told['config']).data
  test = memory.load(data).test
  logits = net.apply(variables, batches.normalise(test.images, data))
  top1 = float((np.argmax(logits, -1) == test.labels).mean())
  assert top1 == pytest.approx(result(workdir)['test_top1'], abs=1e-6)
  counts = compact.count(net, (8, 8, 1))
  assert counts.params == result(workdir)['learned']['params']
  assert counts.macs == result(workdir)['learned']['macs']
  weights = sum(a.size for a in _leaves(variables['params']))
  assert weights == counts.params


def _leaves(tree):
  for value in tree.values():
    yield from _leaves(value) if isinstance(value, dict) else (value,)


def start_and_kill_at(workdir, line):
  """Runs until `line` is printed, then SIGKILLs the whole process group."""
  process = subprocess.Popen(
    command(workdir),
    cwd=ROOT,
    stdout=subprocess.PIPE,
    text=True,
    env={**os.environ, 'PYTHONUNBUFFERED': '1'},
    start_new_session=True,
  )
  assert process.stdout is not None
  with process.stdout:
    seen = any(printed.startswith(line) for printed in process.stdout)
  if process.poll() is None:
    os.killpg(process.pid, signal.SIGKILL)
  assert seen, f'never printed {line!r}'
  assert process.wait() == -signal.SIGKILL


@pytest.mark.slow
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
    start_and_kill_at(killed, line)
  assert 'going on with' in succeed(killed)
  undisturbed, _ = demo
  assert result(killed) == result(undisturbed)
  assert metrics(killed) == metrics(undisturbed)
  for file in ('architecture.json', 'model/variables.safetensors'):
    assert (killed / file).read_bytes() == (undisturbed / file).read_bytes()


@pytest.mark.slow
@pytest.mark.parametrize('network', ['resnet8_digits', 'mobilenet_v2_digits'])
def test_other_families_run_too(network, tmp_path):
  succeed(tmp_path / 'run', *SHORT, f'--config.network.name={network}')
  got = result(tmp_path / 'run')
  assert got['network'] == network
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
  assert compact.count(net, (8, 8, 1)).params == got['baseline']['params']


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
  assert compact.count(net, (8, 8, 1)).macs == got['learned']['macs']


@pytest.mark.slow
def test_closing_everything_is_told_and_kept(tmp_path):
  workdir = tmp_path / 'run'
  flags = (*SHORT, '--config.penalty=30.0')
  for _ in range(2):  # and again from the kept checkpoint, at once
    told = fail(workdir, *flags)
    assert 'closed every channel of gate1_1' in told
    assert 'smaller penalty than 30' in told
  gates = json.loads((workdir / 'architecture.json').read_text())['gates']
  assert gates['gate1_1'] == []
  assert len(metrics(workdir)) == 3
  assert not (workdir / 'result.json').exists()
  assert not (workdir / 'model').exists()


@pytest.mark.slow
def test_folder_of_another_config(demo):
  workdir, _ = demo
  told = fail(workdir, '--config.seed=7', '--config.penalty=0.5')
  assert 'seed (folder: 0, now: 7)' in told
  assert 'penalty (folder: 0.035, now: 0.5)' in told
  assert 'batch_size' not in told


@pytest.mark.parametrize(
  ('flag', 'message'),
  [
    ('--config.oder=x', 'Did you mean "order" instead of "oder"?'),
    ('--config.seed=x', 'config.seed=x'),
    ('--config.network.name=vgg17', "did you mean 'vgg16'?"),
    ('--config.data.name=digit', "did you mean 'digits'?"),
    ('--config.data.image=4', 'data.image is 4: too small'),
    ('--config.stages.warmup.epochs=-1', 'stages.warmup.epochs is -1'),
    ('--config.batch_size=100000', 'there are 1140 images to train on'),
  ],
)
def test_bad_flags(flag, message, tmp_path):
  assert message in fail(tmp_path / 'run', flag)
  assert not list(tmp_path.rglob('*.json*'))


def test_bad_commands(tmp_path):
  assert 'nope.py' in fail(tmp_path, config='configs/nope.py')
  told = fail(tmp_path, config='configs/quickstart.py:basline')
  assert "unknown variant 'basline'" in told
  assert not list(tmp_path.iterdir())


def test_workdir_that_is_a_file(tmp_path):
  (tmp_path / 'file').write_text('precious')
  assert 'cannot be made' in fail(tmp_path / 'file')
  assert (tmp_path / 'file').read_text() == 'precious'


def test_missing_data_directory(tmp_path):
  told = fail(
    tmp_path / 'run',
    f'--config.data.dir={tmp_path}/none',
    config='configs/vgg16_fashion_mnist.py',
  )
  assert f"data.dir is '{tmp_path}/none', which is not a directory" in told
  assert not (tmp_path / 'run').exists()


ARCHITECTURE = {
  'schema_version': 1,
  'network': {'name': 'vgg7_digits', 'width': 1.0, 'classes': 10},
  'image_shape': [8, 8, 1],
  'gates': {f'gate{i}_{j}': [0, 5] for i in (1, 2, 3) for j in (1, 2)},
}


@pytest.mark.parametrize(
  ('change', 'message'),
  [
    ({'schema_version': 9}, 'schema_version 9; this release reads 1'),
    ({'network': 3}, 'not an architecture.json of ours'),
    ({'gates': {}}, "the file has no gate 'gate1_1'"),
    ({'gates': {**ARCHITECTURE['gates'], 'x': []}}, "no gate 'x'"),
    ({'gates': {**ARCHITECTURE['gates'], 'gate1_1': [5, 0]}}, 'ascending'),
    ({'gates': {**ARCHITECTURE['gates'], 'gate1_1': [32]}}, 'outside 0 to 31'),
    ({'gates': {**ARCHITECTURE['gates'], 'gate1_1': ['a']}}, 'integers'),
  ],
)
def test_damaged_architecture_is_refused(change, message, tmp_path):
  path = tmp_path / 'architecture.json'
  path.write_text(json.dumps({**ARCHITECTURE, **change}))
  with pytest.raises(errors.UserError, match=message):
    dnal_jax.load(tmp_path)


def test_missing_or_broken_files_are_named(tmp_path):
  with pytest.raises(errors.UserError, match='is not a directory'):
    dnal_jax.load(tmp_path / 'none')
  with pytest.raises(errors.UserError, match=r'architecture\.json'):
    dnal_jax.load(tmp_path)
  (tmp_path / 'architecture.json').write_text('{')
  with pytest.raises(errors.UserError, match='is not JSON'):
    dnal_jax.load(tmp_path)
  (tmp_path / 'architecture.json').write_text(json.dumps(ARCHITECTURE))
  with pytest.raises(errors.UserError, match='a run writes it when it finish'):
    dnal_jax.load(tmp_path)
