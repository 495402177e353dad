"""The dry run compiles the programs of a run, and reports them correctly."""

import importlib.util
import json
import math
import os
import subprocess
import sys

from commands import ROOT
import pytest

from configs import mbv2_imagenet, quickstart
from dnal_jax import dryrun, models, trees
from dnal_jax.config import parse_config
from dnal_jax.cost import exact
from dnal_jax.data import memory, splits
from dnal_jax.graph import walk

needs_libtpu = pytest.mark.skipif(
  importlib.util.find_spec('libtpu') is None,
  reason="libtpu is not installed: pip install 'jax[tpu]'",
)


def command(*flags, config='configs/quickstart.py', env=None):
  config = () if config is None else (f'--config={config}',)
  return subprocess.run(
    (sys.executable, '-m', 'dnal_jax.dryrun', *config, *flags),
    cwd=ROOT,
    env=env,
    capture_output=True,
    text=True,
    check=False,
  )


def fail(*flags, **kwargs):
  """The single error message of a command that must exit with code 2."""
  done = command(*flags, **kwargs)
  assert done.returncode == 2, (done.stdout, done.stderr)
  found = [n for n in done.stderr.splitlines() if n.startswith('error: ')]
  assert len(found) == 1, done.stderr
  assert 'Traceback' not in done.stderr
  assert not done.stdout
  return found[0]


def report(*flags, **kwargs):
  """The report of --json, which must be all of standard output."""
  done = command('--json', *flags, **kwargs)
  assert done.returncode == 0, done.stderr
  return json.loads(done.stdout)


@pytest.mark.parametrize('limit', [0, 15, 16, 40, 64, 100, 5000, 10**9])
@pytest.mark.parametrize('start', [1, 16, 64, 96, 4096])
def test_search_for_the_largest_batch(limit, start):
  asked = []
  best, failed = dryrun.largest(
    lambda batch: not asked.append(batch) and batch <= limit, start, 16, 5000
  )
  fitting = [b for b in (16 << k for k in range(9)) if b <= min(limit, 5000)]
  assert best == (fitting[-1] if fitting else None)
  assert failed is None or failed == (2 * best if best else 16)
  assert (failed is None) == (limit >= 4096)
  assert len(set(asked)) == len(asked)
  assert set(asked) <= {16 << k for k in range(9)}


# The programs are those of a run.


@pytest.mark.parametrize(
  'devices',
  [
    pytest.param(1, marks=pytest.mark.long),
    pytest.param(8, marks=pytest.mark.slow),
  ],
)
def test_shapes_are_lowered_to_the_program_of_arrays(devices):
  done = subprocess.run(
    (sys.executable, 'tests/same_program.py', str(devices)),
    cwd=ROOT,
    env={**os.environ, 'PYTHONPATH': str(ROOT)},
    capture_output=True,
    text=True,
    check=False,
  )
  assert done.returncode == 0, done.stderr


def test_known_sizes_of_data_sets_are_those_of_the_data():
  data = parse_config(quickstart.get_config().to_dict()).data
  read = memory.load(data)
  found = len(read.train.labels) + len(read.validation.labels)
  assert splits.images(data) == found
  data = parse_config(mbv2_imagenet.get_config().to_dict()).data
  assert splits.images(data) == 1_281_167


# The command.


@needs_libtpu
@pytest.mark.slow
def test_report_of_a_small_network_on_four_chips():
  found = report(
    '--topology=v5e:2x2', '--config.network.name=mobilenet_v2_digits'
  )
  assert (found['chips'], found['batch_size']) == (4, 64)
  net = models.get('mobilenet_v2_digits').build(classes=10)
  macs = exact.count(net, (8, 8, 1)).macs
  stages = {row['stage']: row for row in found['stages']}
  assert list(stages) == ['warmup', 'search', 'finetune']
  for row in stages.values():
    assert row['fits']
    assert row['macs'] == 64 * macs
    assert set(row['collectives']) == {'all-reduce'}
    moved = row['collectives']['all-reduce'] / row['ideal_all_reduce']
    assert 0.95 <= moved <= 1.05
    parts = dict(row['memory'])
    assert 0 < parts.pop('total') == sum(parts.values()) < row['hbm']
    assert min(row['bounds'].values()) > 0
  bytes_of = {k: row['collectives']['all-reduce'] for k, row in stages.items()}
  assert bytes_of['search'] < bytes_of['warmup'] == bytes_of['finetune']


@needs_libtpu
@pytest.mark.long
def test_a_streamed_data_set_and_two_stages_that_are_the_same_program():
  """ImageNet's images, unread, at 8 pixels; the two stages differ in their
  hyperparameters only."""
  found = report(
    *('--topology=v5e:2x2', '--batch=64', '--config.data.image=8'),
    '--config.network.name=mobilenet_v2_digits',
    config='configs/mbv2_imagenet.py',
  )
  warmup, search, finetune = found['stages']
  same_as = [row['same_as'] for row in (warmup, search, finetune)]
  assert same_as == [None, None, 'warmup']
  assert dryrun.describe(finetune).startswith(
    'finetune: same program as warmup\n'
  )
  assert finetune['compile_seconds'] == 0 < warmup['compile_seconds']
  for key in ('memory', 'collectives', 'bounds', 'macs'):
    assert finetune[key] == warmup[key]
  # Each chip has 16 of the 64 images, which are small compared with the state.
  net = models.get('mobilenet_v2_digits').build(classes=1000)
  state = 2 * sum(  # weights and momenta
    4 * math.prod(a.shape)
    for a in trees.flatten(
      walk.graph_of(net, (8, 8, 3)).shapes['params']
    ).values()
  )
  assert state < warmup['memory']['arguments'] < 3 * state


@needs_libtpu
@pytest.mark.long
def test_a_learned_network_and_the_largest_batch(tmp_path):
  """With 1,140 images the largest batch is 1,024; half of the channels."""
  path = tmp_path / 'architecture.json'
  graph = walk.graph_of(models.get('vgg7_digits').build(classes=10), (8, 8, 1))
  value = {
    'schema_version': 1,
    'network': {'name': 'vgg7_digits', 'width': 1.0, 'classes': 10},
    'image_shape': [8, 8, 1],
    'gates': {gate: ids[: len(ids) // 2] for gate, ids in graph.gates.items()},
  }
  path.write_text(json.dumps(value))
  flags = ('--topology=v5e:2x2', f'--architecture={path}', '--batch=600')
  found = report(*flags, '--largest_batch', "--config.order=('warmup',)")
  assert (found['largest_batch'], found['does_not_fit']) == (1024, None)
  assert found['batch_size'] == 1024
  (row,) = found['stages']
  half = models.get('vgg7_digits').build(classes=10, width=0.5)
  assert row['macs'] == 1024 * exact.count(half, (8, 8, 1)).macs
  message = fail(*flags, '--config.network.width=0.25')
  assert 'learned with width 1.0, and the config has 0.25; ' in message


@needs_libtpu
@pytest.mark.slow
def test_a_program_that_does_not_fit_is_a_result_and_not_an_error():
  flags = ('--topology=v5e:1x1', '--config.data.image=512', '--batch=1024')
  (row,) = report(*flags)['stages']  # later stages are not compiled
  assert (row['stage'], row['fits'], row['memory']) == ('warmup', False, None)
  assert '15.75G' in row['compiler_message']
  lines = dryrun.describe(row).splitlines()
  assert lines[0].startswith('warmup: compiled in ')
  assert (
    f'does not fit into 16 GiB per chip: {row["compiler_message"]}'
    in (lines[1])
  )
  assert 'at least' in lines[-1]


@needs_libtpu
@pytest.mark.slow
def test_without_json_the_report_is_text():
  """And a batch is images over all chips."""
  flags = ('--topology=v5e:2x2', '--batch=64', "--config.order=('warmup',)")
  done = command(*flags, '--config.network.width=0.25')
  assert done.returncode == 0, done.stderr
  assert 'batch 64, 16 per chip' in done.stdout
  head, memory, macs, exchanged, step = done.stdout.splitlines()[-5:]
  assert head.startswith('warmup: compiled in')
  assert 'of 16 GiB per chip: fits' in memory
  net = models.get('vgg7_digits').build(classes=10, width=0.25)
  assert f'{64 * exact.count(net, (8, 8, 1)).macs:.4g} forward' in macs
  assert 'all-reduce' in exchanged
  assert 'bound by' in step


@pytest.mark.parametrize(
  ('flags', 'parts'),
  [
    ((), ('--config=configs/NAME.py', '--topology=SLICE', 'v5e:4x4')),
    (('--topology=v5e',), ("--topology is 'v5e'", 'such as v5e:4x4')),
    (('--topology=v5x:4x4',), ("chip 'v5x'", "did you mean 'v5")),
    (('--topology=v5e:4x4', '--batch=0'), ('--batch is 0', 'positive')),
  ],
)
def test_mistakes(flags, parts):
  message = fail(*flags)
  assert all(part in message for part in parts), message


@needs_libtpu
@pytest.mark.parametrize(
  ('flags', 'parts'),
  [
    (('--topology=v5e:9x2',), ("--topology is 'v5e:9x2'", 'v6e:2x4')),
    (
      ('--topology=v5e:4x4', '--batch=100'),
      ('--batch is 100', '16 devices'),
    ),
    (
      ('--topology=v5e:4x4', '--config.batch_size=100'),
      ('batch_size is 100', '16 devices'),
    ),
    (('--topology=v5e:4x4', '--batch=3200'), ('3200', '1140')),
    (
      ('--topology=v5e:4x4', '--config.eval_batch_size=100'),
      ('eval_batch_size is 100', '16 devices'),
    ),
    (
      (
        '--topology=v5e:16x16',
        '--largest_batch',
        '--json',  # else the text report has begun
        '--config.grad_accum_steps=8',
      ),
      ('smallest batch is 2048', '1140 training images', '--topology'),
    ),
  ],
)
def test_mistakes_about_a_slice(flags, parts):
  message = fail(*flags)
  assert all(part in message for part in parts), message


def test_without_a_config_or_libtpu(tmp_path, monkeypatch):
  message = fail('--topology=v5e:4x4', config=None)
  assert '--config=configs/NAME.py' in message
  # Python runs this first, in the process that the test starts.
  (tmp_path / 'sitecustomize.py').write_text(
    "import sys\nsys.modules['libtpu'] = None\n"
  )
  monkeypatch.setenv('PYTHONPATH', str(tmp_path))
  message = fail('--topology=v5e:4x4')
  assert "pip install 'jax[tpu]==" in message
