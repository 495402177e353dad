"""Folders that version 1 wrote are read, finished and reproduced.

Floating-point results depend on the processor, so they are compared only where
`golden/cpu.txt` names this one (`golden/README.md`).
"""

import hashlib
import json
import os
import pathlib
import shutil
import subprocess

from commands import (
  ROOT,
  command,
  fail_here,
  metrics,
  result,
  run_here,
  succeed,
)
import jax
import numpy as np
import pytest
from untrusted import split

import dnal_jax
from dnal_jax import status, summary
import dnal_jax.main
from dnal_jax.workdir import architecture, weights

GOLDEN = ROOT / 'tests/golden'
# The config of the runs in version_1, in today's keys.
FLAGS = (
  '--config.network.width=0.25',
  '--config.grad_accum_steps=2',
  '--config.max_nan_restarts=1',
  '--config.stages.warmup.epochs=1',
  '--config.stages.warmup.train.weights.lr.end=0.05',  # 1 epoch of 20
  '--config.stages.finetune.train.weights.lr.end=0.03333333333333333',
  '--config.stages.search.epochs=2',
  '--config.stages.search.delta_end=100.0',
  '--config.stages.search.train.gates.lr.base=0.1',
  '--config.stages.finetune.epochs=1',
  '--config.stages.finetune.gate_threshold=0.5',
  '--config.checkpoint_steps=10',
)


def is_golden_cpu():
  """Whether the golden runs were made on a processor of this kind."""
  name = (GOLDEN / 'cpu.txt').read_text().strip()
  info = pathlib.Path('/proc/cpuinfo')
  return info.exists() and name in info.read_text()


def assert_reproduced(workdir, golden):
  """Asserts that a run has the figures of a golden one, times apart, and its
  channels; beside them it has what later versions added."""
  names = {'class_names': list('0123456789')}
  found, expected = result(workdir), result(golden)
  assert found == found | expected | names | {
    key: found[key] | expected[key] for key in ('baseline', 'learned')
  }
  assert metrics(workdir) == metrics(golden)
  found, expected = (
    json.loads((f / 'architecture.json').read_text()) for f in (workdir, golden)
  )
  assert found == expected | names | {
    'schema_version': 2,
    'preprocessing': {'mean': [0.3053], 'std': [0.376], 'short_side': None},
  }


@pytest.fixture
def folder(tmp_path):
  """Copies of the folders of version 1, which tests may write to."""
  return shutil.copytree(GOLDEN / 'version_1', tmp_path / 'version_1')


def test_finished_run_loads_and_summarises(folder):
  net, variables = dnal_jax.load(folder / 'finished')
  logits = net.apply(variables, np.zeros((2, 8, 8, 1), np.float32))
  assert logits.shape == (2, 10)
  assert np.isfinite(logits).all()
  path = folder / 'finished/architecture.json'
  counts = summary.summarise(*architecture.read(path)[:2])
  recorded = result(folder / 'finished')
  for key in ('baseline', 'learned', 'gates'):
    assert counts[key] == counts[key] | recorded[key]
  content = (folder / 'finished' / weights.FILE).read_bytes()
  assert len(split(content)[1]) == counts['learned']['weight_bytes']
  ids = json.loads(path.read_text())['gates'].values()
  assert counts['gates']['kept'] == sum(map(len, ids)) > 0


@pytest.mark.parametrize(
  ('name', 'now', 'step'),
  [('finished', 'finished', 68), ('stopped',) * 2 + (44,)],
)
def test_status_of_version_1(name, now, step, folder):
  row = status.read(folder / name)
  assert (row['now'], row['run_step'], row['run_steps']) == (now, step, 68)
  assert f'run         step {step} of 68' in status.text(row)


def test_finished_run_is_recognised_and_left_alone(folder):
  workdir = folder / 'finished'
  before = {f: f.read_bytes() for f in workdir.rglob('*') if f.is_file()}
  ended = run_here(dnal_jax.main, *command(workdir, *FLAGS)[3:])
  assert ended.code == 0, ended
  assert f"'{workdir}' is finished; nothing to do." in ended.out
  difference = json.loads((workdir / 'result.json').read_text())[
    'compact_max_abs_diff'
  ]
  assert f'max abs logit difference {difference:.1e}' in ended.out
  assert before == {
    f: f.read_bytes() for f in workdir.rglob('*') if f.is_file()
  }


def test_another_config_is_refused_by_its_new_key(folder):
  message = fail_here(
    folder / 'stopped', *FLAGS, '--config.stages.finetune.gate_threshold=0.25'
  )
  difference = 'stages.finetune.gate_threshold (folder: 0.5, now: 0.25)'
  assert f'keys that differ: {difference}. Choose' in message


@pytest.mark.slow
def test_stopped_run_goes_on_to_the_end(folder, monkeypatch):
  """From the middle of the second epoch of its search."""
  # Of the run that wrote the folder; another level rounds differently.
  monkeypatch.setenv('XLA_FLAGS', '--xla_backend_optimization_level=1')
  path = folder / 'stopped/config.json'
  before = json.loads(path.read_text())
  printed = succeed(folder / 'stopped', *FLAGS)
  after = json.loads(path.read_text())
  (resumed_with,) = after.pop('resumed_with')
  assert (before, resumed_with['versions']['jax']) == (after, jax.__version__)
  assert f'git {before["git"]!r} -> {resumed_with["git"]!r}' in printed
  assert "'search', 1 of 2 epochs and 10 steps done" in printed
  assert 'damaged' not in printed
  rows, expected = (metrics(folder / n) for n in ('stopped', 'finished'))
  assert [r['epochs_done'] for r in rows] == [1, 2, 3, 4]
  # These rows were written before it was stopped.
  assert rows[:2] == expected[:2]
  # Keys have been added since, and none has gone.
  assert result(folder / 'stopped').keys() > result(folder / 'finished').keys()
  if is_golden_cpu():
    assert_reproduced(folder / 'stopped', folder / 'finished')
    found, expected = (
      (folder / name / weights.FILE).read_bytes()
      for name in ('stopped', 'finished')
    )
    assert found == expected


@pytest.mark.long
@pytest.mark.skipif(not is_golden_cpu(), reason='another processor')
def test_demo_reproduces_its_golden_run(tmp_path):
  """`make demo` as users run it, without the XLA flags of `conftest.py`."""
  workdir = tmp_path / 'demo'
  environment = {k: v for k, v in os.environ.items() if k != 'XLA_FLAGS'}
  subprocess.run(command(workdir), cwd=ROOT, env=environment, check=True)
  golden = GOLDEN / 'demo'
  assert_reproduced(workdir, golden)
  content = (workdir / weights.FILE).read_bytes()
  digest = (golden / 'variables.sha256').read_text().split()[0]
  assert hashlib.sha256(content).hexdigest() == digest
