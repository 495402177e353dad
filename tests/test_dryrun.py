"""The dry run: what it compiles is what a run compiles, and what it tells."""

import importlib.util
import json
import math
import subprocess
import sys

from commands import ROOT
import pytest

from configs import mbv2_imagenet, quickstart
from dnal_jax import (
  chips,
  compact,
  dryrun,
  hlo,
  models,
  rehearsal,
  settings,
  trees,
)
from dnal_jax.data import memory, splits

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
  """The one message of a command that must give up with exit code 2."""
  done = command(*flags, **kwargs)
  assert done.returncode == 2, (done.stdout, done.stderr)
  told = [n for n in done.stderr.splitlines() if n.startswith('error: ')]
  assert len(told) == 1, done.stderr
  assert 'Traceback' not in done.stderr
  assert not done.stdout
  return told[0]


def report(*flags, **kwargs):
  """What --json prints, which must be all of standard output."""
  done = command('--json', *flags, **kwargs)
  assert done.returncode == 0, done.stderr
  return json.loads(done.stdout)


# What a compiled program tells.

PROGRAM = """
  %a.1 = (f32[32]{0:T(128)S(1)}, /*index=1*/bf16[3,3,1,32]{3,2,1,0:T(8,128)}) \
all-reduce(%x, %y), channel_id=1, to_apply=%sum
  %b = f32[32]{0} get-tuple-element(%a.1), index=0, metadata={op_name="all-reduce"}
  %c = (f32[4]{0}, f32[16]{0}) all-gather-start(%b), dimensions={0}
  %d = f32[16]{0} all-gather-done(%c)
  ROOT %e = pred[] all-reduce(%p), to_apply=%and
  %f = f32[8]{0} all-reduce-start(%g), to_apply=%sum
  %h = f32[8]{0} all-reduce-done(%f)
"""  # noqa: E501


def test_collectives_are_told_with_their_bytes():
  assert hlo.collectives(PROGRAM) == {
    'all-reduce': 4 * 32 + 2 * 9 * 32 + 1 + 4 * 8,
    'all-gather': 4 * 16,
  }
  assert hlo.collectives('%x = f32[8]{0} add(%y, %z)') == {}


# What a step must do at least.


def stage(name):
  by_name = settings.parse(quickstart.get_config().to_dict()).stages
  return next(stage for stage in by_name if stage.name == name)


def test_macs_with_gradients():
  """No gradient by the image; in the search, of kernels only the head's."""
  net = models.get('vgg7_digits').build(classes=10)
  walk = compact.walk(net, (8, 8, 1))
  macs, first, head = compact.count(net, (8, 8, 1)).macs, 64 * 9 * 32, 128 * 10
  told = rehearsal.macs_with_gradients(stage('warmup'), walk)
  assert told == 3 * macs - first
  told = rehearsal.macs_with_gradients(stage('search'), walk)
  assert told == 2 * macs - first + head


@pytest.mark.parametrize('network', ['vgg7_digits', 'mobilenet_v2_digits'])
def test_ideal_exchange(network):
  walk = compact.walk(models.get(network).build(classes=10), (8, 8, 1))
  params, gates, head, moments = (
    4 * sum(math.prod(a.shape) for a in trees.flatten(tree).values())
    for tree in (
      walk.shapes['params'],
      walk.shapes['gates'],
      walk.shapes['params']['head'],
      walk.shapes['batch_stats'],
    )
  )
  told = rehearsal.ideal_all_reduce(stage('warmup'), walk)
  assert told == params + moments
  told = rehearsal.ideal_all_reduce(stage('search'), walk)
  assert told == gates + head + 2 * moments


def test_bounds_by_hand():
  """16 chips of 197 TFLOP/s, 819 GB/s and 200 GB/s."""
  told = chips.at_least(
    chips.CHIPS['v5e'],
    16,
    macs=16 * 197 * 10**12,
    bytes_accessed=819e9,
    all_reduced=16 * 10**11,
  )
  assert told == pytest.approx({'compute': 2, 'memory': 1, 'all_reduce': 15})


@pytest.mark.parametrize(
  ('chip', 'number', 'flops', 'all_reduce'),
  [
    ('v4', 4096, 1.1e18, 1.1e15),
    ('v5e', 256, 50.63e15, 51.2e12),
    ('v5p', 8960, 4.11e18, None),
    ('v6e', 256, 234.9e15, 102.4e12),
  ],
)
def test_table_agrees_with_what_is_published_of_pods(
  chip, number, flops, all_reduce
):
  assert chips.CHIPS[chip].flops * number == pytest.approx(flops, rel=0.03)
  if all_reduce:
    told = chips.CHIPS[chip].interconnect * number
    assert told == pytest.approx(all_reduce, rel=0.01)


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


# What is compiled is what a run compiles.

SAME = """
import sys
import jax
import numpy as np
jax.config.update('jax_num_cpu_devices', int(sys.argv[1]))
from configs import quickstart
from dnal_jax import compact, engine, mesh, settings, step
from dnal_jax.data import sources
parsed = settings.parse(quickstart.get_config().to_dict())
net = parsed.build()
shapes = compact.walk(net, parsed.image_shape).shapes
with jax.set_mesh(mesh.of_devices()):
  source = sources.open_source(
    parsed.data, seed=0, batch_size=64, eval_batch_size=256
  )
  inputs = next(source.train_inputs(0))
  given = sources.inputs_of(parsed.data, seed=0, batch_size=64)
  for stage in parsed.stages:
    variables = jax.tree.map(lambda a: np.zeros(a.shape, a.dtype), shapes)
    begin = jax.jit(
      lambda p, g, b: mesh.whole(
        step.begin(stage, p, g, b, source.steps_per_epoch)
      )
    )
    state = begin(*(variables[k] for k in ('params', 'gates', 'batch_stats')))
    texts = []
    for of, state, inputs in (
      (source, state, inputs),
      (
        given,
        engine.state_shapes(stage, shapes, given.steps_per_epoch),
        given.train_shapes(),
      ),
    ):
      program = engine.CompiledStage(
        net, stage, of, dtype='float32', first_step=0
      )
      texts.append(program.lower(state, inputs).as_text())
    assert texts[0] == texts[1], stage.name
    assert f'num_partitions = {sys.argv[1]} ' in texts[0]
"""


@pytest.mark.slow
@pytest.mark.parametrize('devices', [1, 8])
def test_shapes_are_lowered_to_the_program_of_arrays(devices):
  done = subprocess.run(
    (sys.executable, '-c', SAME, str(devices)),
    cwd=ROOT,
    capture_output=True,
    text=True,
    check=False,
  )
  assert done.returncode == 0, done.stderr


def test_sizes_of_data_sets_are_those_read():
  data = settings.parse(quickstart.get_config().to_dict()).data
  read = memory.load(data)
  found = len(read.train.labels) + len(read.validation.labels)
  assert splits.images(data) == found
  data = settings.parse(mbv2_imagenet.get_config().to_dict()).data
  assert splits.images(data) == 1_281_167


# The command.


@needs_libtpu
@pytest.mark.slow
def test_report_of_a_small_network_on_four_chips():
  told = report(
    '--topology=v5e:2x2', '--config.network.name=mobilenet_v2_digits'
  )
  assert (told['chips'], told['batch_size']) == (4, 64)
  net = models.get('mobilenet_v2_digits').build(classes=10)
  macs = compact.count(net, (8, 8, 1)).macs
  stages = {row['stage']: row for row in told['stages']}
  assert list(stages) == ['warmup', 'search', 'finetune']
  for row in stages.values():
    assert row['fits']
    assert row['macs'] == 64 * macs
    assert set(row['collectives']) == {'all-reduce'}
    moved = row['collectives']['all-reduce'] / row['ideal_all_reduce']
    assert 0.95 <= moved <= 1.05
    parts = dict(row['memory'])
    assert 0 < parts.pop('total') == sum(parts.values()) < row['hbm']
    assert min(row['at_least'].values()) > 0
  bytes_of = {k: row['collectives']['all-reduce'] for k, row in stages.items()}
  assert bytes_of['search'] < bytes_of['warmup'] == bytes_of['finetune']


@needs_libtpu
@pytest.mark.slow
def test_a_learned_network_and_the_largest_batch(tmp_path):
  """There are 1,140 images, so 1,024 is the most; half of the channels."""
  path = tmp_path / 'architecture.json'
  walk = compact.walk(models.get('vgg7_digits').build(classes=10), (8, 8, 1))
  value = {
    'schema_version': 1,
    'network': {'name': 'vgg7_digits', 'width': 1.0, 'classes': 10},
    'image_shape': [8, 8, 1],
    'gates': {gate: ids[: len(ids) // 2] for gate, ids in walk.gates.items()},
  }
  path.write_text(json.dumps(value))
  flags = ('--topology=v5e:2x2', f'--architecture={path}', '--batch=300')
  told = report(*flags, '--largest_batch', "--config.order=('warmup',)")
  assert (told['largest_batch'], told['does_not_fit']) == (1024, None)
  assert told['batch_size'] == 1024
  (row,) = told['stages']
  half = models.get('vgg7_digits').build(classes=10, width=0.5)
  assert row['macs'] == 1024 * compact.count(half, (8, 8, 1)).macs
  assert 'learned from another' in fail(*flags, '--config.network.width=0.25')


@needs_libtpu
@pytest.mark.slow
def test_what_does_not_fit_is_told_and_not_an_error():
  flags = ('--topology=v5e:1x1', '--config.data.image=512', '--batch=1024')
  (row,) = report(*flags)['stages']  # the stages behind it are not tried
  assert (row['stage'], row['fits'], row['memory']) == ('warmup', False, None)
  assert '15.75G' in row['compiler_told']
  done = command(*flags)
  assert 'does not fit into 16 GiB a chip: Ran out of memory' in done.stdout
  assert done.returncode == 0


@pytest.mark.parametrize(
  ('flags', 'message'),
  [
    ((), 'both --config=configs/NAME.py and --topology=SLICE must be given'),
    (('--topology=v5e',), 'such as v5e:4x4'),
    (('--topology=v5x:4x4',), "unknown chip 'v5x' (did you mean 'v5"),
    (('--topology=v5e:4x4', '--batch=0'), '--batch is 0'),
  ],
)
def test_mistakes(flags, message):
  assert message in fail(*flags)


@needs_libtpu
@pytest.mark.parametrize(
  ('flags', 'message'),
  [
    (('--topology=v5e:9x2',), 'v6e:2x4'),
    (('--topology=v5e:4x4', '--batch=100'), '--batch is 100, which 16 devices'),
    (('--topology=v5e:4x4', '--config.batch_size=100'), 'batch_size is 100'),
    (('--topology=v5e:4x4', '--batch=3200'), 'there are 1140 images'),
    (
      ('--topology=v5e:4x4', '--config.eval_batch_size=100'),
      'eval_batch_size is 100',
    ),
  ],
)
def test_mistakes_about_a_slice(flags, message):
  assert message in fail(*flags)


def test_without_a_config_or_libtpu(tmp_path, monkeypatch):
  told = fail('--topology=v5e:4x4', config=None)
  assert 'both --config=configs/NAME.py and --topology' in told
  # Python runs this first, in the process that the test starts.
  (tmp_path / 'sitecustomize.py').write_text(
    "import sys\nsys.modules['libtpu'] = None\n"
  )
  monkeypatch.setenv('PYTHONPATH', str(tmp_path))
  told = fail('--topology=v5e:4x4')
  assert "pip install 'jax[tpu]==" in told
