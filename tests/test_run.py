"""Runs of other lists of stages than the demo's."""

import copy
import json

from commands import (
  SHORT,
  metrics,
  result,
)
import in_process
import numpy as np
import pytest

from configs import quickstart
import dnal_jax
from dnal_jax import train
from dnal_jax.config import parse_config
from dnal_jax.cost import exact


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
