"""Runs under a target: `--config=FILE:target --config.target.macs=0.1`."""

import json

from commands import assert_same, metrics, result
import in_process
import numpy as np
from PIL import Image
import pytest
from sklearn.datasets import load_digits
import targets

import dnal_jax
from dnal_jax import errors, train, trees
from dnal_jax.config import parse_config
from dnal_jax.cost import exact

SHORT = (
  '--config.stages.warmup.epochs=2',
  '--config.stages.search.epochs=4',
  '--config.stages.finetune.epochs=2',
)


def run(workdir, *flags):
  return in_process.run(workdir, *SHORT, *flags, variant='target')


@pytest.fixture(scope='session')
def tenth(tmp_path_factory):
  """The folder of a run to a tenth of the macs."""
  workdir = tmp_path_factory.mktemp('target') / 'run'
  run(workdir, '--config.target.macs=0.1')
  return workdir


@pytest.mark.slow
@pytest.mark.xdist_group('target')
def test_the_network_has_the_cost_that_was_asked_for(tenth):
  got = result(tenth)
  asked, limit, reached = (
    got['target']['macs'][key] for key in ('asked', 'limit', 'reached')
  )
  assert (asked, limit) == (0.1, got['baseline']['macs'] // 10)
  assert reached == got['learned']['macs']
  assert 0.99 * limit <= reached <= limit
  net, _ = dnal_jax.load(tenth)
  assert exact.count(net, (8, 8, 1)).macs == reached
  assert got['top1']['pruned'] == got['top1']['compact']


@pytest.mark.slow
@pytest.mark.xdist_group('target')
def test_the_cost_falls_to_the_target_in_the_search(tenth):
  """The soft cost, of which hardly anything is left to the decision."""
  rows = [row for row in metrics(tenth) if row['stage'] == 'search']
  costs = [row['target']['macs'] for row in rows]
  assert 3 < costs[0] < 5  # 0.1 ** (1 - 1/4 / 0.6), and less by a step
  assert costs[-1] == pytest.approx(1, abs=0.02)
  assert all(
    'target' not in r for r in metrics(tenth) if r['stage'] != 'search'
  )


@pytest.mark.long
@pytest.mark.xdist_group('target')
def test_killed_in_the_search_and_after_the_cut(tenth, tmp_path):
  """Within an epoch, as the cost is held by the step."""
  flags, workdir = ('--config.target.macs=0.1',), tmp_path / 'run'
  for line in ('search 3/', 'pruned to', 'finetune 1/'):
    at = in_process.at_line(line, in_process.kill)
    with at, pytest.raises(in_process.Killed):
      run(workdir, *flags, '--config.checkpoint_steps=5')
  run(workdir, *flags, '--config.checkpoint_steps=5')
  assert_same(workdir, tenth)


@pytest.mark.long
@pytest.mark.xdist_group('target')
def test_two_targets_and_multiples(tmp_path):
  workdir = tmp_path / 'run'
  run(
    workdir,
    '--config.target.macs=500_000',
    '--config.target.params=0.3',
    '--config.stages.finetune.channel_multiple=4',
  )
  got = result(workdir)
  both = got['target']
  assert both['macs']['limit'] == 500_000
  assert both['params']['limit'] == int(0.3 * got['baseline']['params'])
  shares = [one['reached'] / one['limit'] for one in both.values()]
  assert 0.95 < max(shares) <= 1
  assert all(width % 4 == 0 for _, width in got['widths'].values())


@pytest.mark.slow
@pytest.mark.xdist_group('target')
def test_rows_of_the_benchmark_are_what_they_say(tenth):
  setting = {'seed': 0, 'dtype': 'float32'}
  targets.check(tenth, setting, 'macs=0.1')
  for changed, target, message in (
    ({'seed': 1}, 'macs=0.1', 'has seed 0, where its row says 1'),
    ({'dtype': 'bfloat16'}, 'macs=0.1', 'has compute_dtype float32, where'),
    ({}, 'macs=0.2', r"has target {'macs': 0.1}, where"),
    ({}, None, r"has target {'macs': 0.1}, where its row says {}"),
  ):
    with pytest.raises(SystemExit, match=message):
      targets.check(tenth, setting | changed, target)


def test_targets_that_cannot_be_reached_are_refused_at_the_start(tmp_path):
  for flag, message in (
    ('--config.target.macs=1e-5', 'cannot have less than 1,522 macs'),
    ('--config.target.macs=50', 'for 50 per cent give 0.5; else give more'),
    ('--config.target.macs=9e9', 'more than the 2,379,008 macs of the full'),
    ('--config.target.macs=-1.0', 'macs is -1.0; it must be above 0'),
    ('--config.seed=1', 'target has no value, and there is no penalty either'),
  ):
    with pytest.raises(errors.UserError, match=message):
      run(tmp_path / 'run', flag)
  both = '--config.penalty=0.1', '--config.target.params=0.5'
  message = 'penalty is 0.1 and target is params 0.5; a search has one of them'
  with pytest.raises(errors.UserError, match=message):
    run(tmp_path / 'run', *both)
  assert not (tmp_path / 'run').exists()


# `init_from`.


@pytest.mark.slow
@pytest.mark.xdist_group('target')
def test_a_search_goes_on_from_the_warmup_of_another_run(
  tenth, tmp_path, capsys
):
  """Bit for bit as if the run had had that warm-up itself; killed as well."""
  flags = '--config.target.macs=0.1', f'--config.init_from={tenth}'
  run(tmp_path / 'alone', *flags)
  said = capsys.readouterr().out
  assert (
    f"begins with '{tenth}', at its warmup, which takes the place of" in said
  )
  workdir = tmp_path / 'killed'
  for line in ('search 2/', 'finetune 1/'):
    at = in_process.at_line(line, in_process.kill)
    with at, pytest.raises(in_process.Killed):
      run(workdir, *flags)
  run(workdir, *flags)
  assert_same(workdir, tmp_path / 'alone')
  mine, theirs = result(workdir), result(tenth)
  assert mine['init_from'] == str(tenth)
  assert mine['top1'] == theirs['top1']
  assert mine['test_top1'] == theirs['test_top1']
  weights = 'model/variables.safetensors'
  for file in ('architecture.json', weights, f'warmup/{weights}'):
    assert (workdir / file).read_bytes() == (tenth / file).read_bytes()
  of_search = [row for row in metrics(tenth) if row['stage'] != 'warmup']
  assert metrics(workdir) == of_search
  times = json.loads((workdir / 'result.json').read_text())['stages']
  assert [stage['seconds'] > 0 for stage in times] == [False, True, True]


@pytest.mark.slow
@pytest.mark.xdist_group('target')
def test_a_finished_network_is_trained_on(tenth, tmp_path):
  """Behind the search, without pruning it again."""
  workdir = tmp_path / 'run'
  run(
    workdir,
    '--config.target.macs=0.1',
    f'--config.init_from={tenth}',
    '--config.init_at=end',
    '--config.stages.finetune.epochs=3',
  )
  got = result(workdir)
  assert got['learned'] == result(tenth)['learned']
  assert [row['stage'] for row in metrics(workdir)] == ['finetune'] * 3
  assert got['top1']['final'] >= result(tenth)['top1']['final'] - 0.02
  net, _ = dnal_jax.load(workdir)
  assert net == dnal_jax.load(tenth).net


def digits_folder(root, labels):
  """Digits of these labels, as a folder of images."""
  digits = load_digits()
  for label in labels:
    for i, pixels in enumerate(digits.images[digits.target == label]):
      folder = root / ('val' if i < 40 else 'train') / f'digit {label}'
      folder.mkdir(parents=True, exist_ok=True)
      Image.fromarray(np.uint8(pixels * 15.9)).save(folder / f'{i}.png')
  return str(root)


def run_on_folder(workdir, folder, *flags):
  """Of images in three channels, as streamed ones are."""
  target = '--config.target.macs=0.3'
  values = in_process.config(*SHORT, target, *flags, variant='target')
  values['batch_size'] = 16
  values['data'] |= {
    'folder': folder,
    'classes': None,
    'validation': 40,
    'crop_pad': 0,
    'short_side': 8,
    'crop_scale': (0.8, 1.0),
    'mean': (0.3053,) * 3,
    'std': (0.376,) * 3,
  }
  train.run(parse_config(values), values, workdir)


@pytest.mark.long
def test_a_finished_network_learns_other_classes(tmp_path, capsys):
  """With a new last layer; the other layers begin with what they were."""
  parent, workdir = tmp_path / 'parent', tmp_path / 'run'
  run_on_folder(parent, digits_folder(tmp_path / 'four', (1, 2, 4, 7)))
  rates = 'stages.finetune.train.weights'
  run_on_folder(
    *(workdir, digits_folder(tmp_path / 'two', (3, 8))),
    *(f'--config.init_from={parent}', '--config.init_at=end'),
    *(f'--config.{rates}.lr.base=0.02', f'--config.{rates}.momentum=0.0'),
  )
  assert 'with a new last layer for other classes' in capsys.readouterr().out
  got = result(workdir)
  assert got['class_names'] == ['digit 3', 'digit 8']
  assert got['test_top1'] >= 0.8
  assert got['widths'] == result(parent)['widths']
  old, new = dnal_jax.load(parent), dnal_jax.load(workdir)
  assert old.net.keep == new.net.keep
  assert (old.net.classes, new.net.classes) == (4, 2)
  old, new = (trees.flatten(model.variables['params']) for model in (old, new))
  for path, array in old.items():
    if path.startswith('head/'):
      assert array.shape != new[path].shape
    elif array.ndim == 4:
      moved = np.linalg.norm(new[path] - array) / np.linalg.norm(array)
      assert moved < 0.1, path


def test_init_from_what_does_not_fit(tenth, tmp_path):
  for flags, message in (
    (
      ['--config.network.width=0.5'],
      r'network.width \(there: 1.0, here: 0.5\)',
    ),
    (
      ['--config.network.name=resnet8_digits'],
      'name .there: vgg7_digits, here: ',
    ),
    (['--config.data.validation=200'], r'validation \(there: 297, here: 200\)'),
    (['--config.data.mean=(0.1,)'], r'data.mean \(there: \(0.3053,\), here:'),
    ([f'--config.init_from={tmp_path}'], 'there is no folder .*warmup'),
    (
      ["--config.order=('warmup',)"],
      "no stage of 'order' searches; set init_at",
    ),
    (
      ["--config.order=('warmup','search')", '--config.init_at=end'],
      "'order' ends with a search; add the stage that is to train",
    ),
  ):
    target = '--config.target.macs=0.1'
    with pytest.raises(errors.UserError, match=message):
      run(tmp_path / 'run', target, f'--config.init_from={tenth}', *flags)
    assert not (tmp_path / 'run').exists()
