"""Configs become frozen dataclasses; what cannot run is refused."""

import copy
import functools
import json
import math
import pathlib

import jax
import pytest

from dnal_jax import errors, trees
from dnal_jax.config import earlier, parse_config, read_config, run_config
from dnal_jax.config.keys import RENAMED_KEYS
from dnal_jax.graph import walk
from dnal_jax.training.optimizer import assign_groups

CONFIGS = pathlib.Path(__file__).parent.parent / 'configs'
GOLDEN = pathlib.Path(__file__).parent / 'golden'
RUNNABLE = sorted(CONFIGS.glob('*.py'))


graph_of = functools.cache(walk.graph_of)


def load(path, variant=''):
  return read_config(f'{path}:{variant}' if variant else str(path))


@pytest.fixture(autouse=True)
def each_network_is_traced_once(monkeypatch):
  """The graph of the supernet takes seconds."""
  monkeypatch.setattr(walk, 'graph_of', graph_of)


@pytest.fixture
def config():
  return load(CONFIGS / 'quickstart.py').to_dict()


def changed(config, path, value):
  """A copy of a config, as nested dicts, with another value at a key."""
  config = copy.deepcopy(config)
  *parents, key = path.split('.')
  node = config
  for parent in parents:
    node = node[parent]
  node[key] = value
  return config


@pytest.mark.parametrize('path', RUNNABLE, ids=lambda p: p.stem)
def test_every_config_is_a_run(path):
  """It parses, and its patterns match something in its own network."""
  for variant, names in (
    ('', ['warmup', 'search', 'finetune']),
    ('baseline', ['baseline']),
  ):
    run = parse_config(load(path, variant).to_dict())
    shapes = walk.graph_of(run.build(), run.image_shape).shapes
    paths = trees.flatten({k: shapes[k] for k in ('params', 'gates')})
    assert [stage.name for stage in run.stages] == names
    for stage in run.stages:
      trained = assign_groups(stage.train, paths)
      searches = stage.delta_end is not None
      assert any(p.startswith('gates/') for p in trained) == searches


def test_docstring_holds_the_command():
  for path in RUNNABLE:
    assert f'--config=configs/{path.name}' in path.read_text(), path


def test_one_lambda_reaches_the_search():
  config = load(CONFIGS / 'vgg16_cifar10.py')
  config.penalty = 5e-4
  by_name = {s.name: s for s in parse_config(config.to_dict()).stages}
  assert by_name['search'].penalty == 5e-4
  assert by_name['warmup'].penalty == 0


def test_cifar_schedule_continues_where_the_warmup_ends():
  """Ours, in the proportions of the published MobileNetV2: half a cosine,
  then from a quarter of another to its end."""
  run = parse_config(load(CONFIGS / 'vgg16_cifar10.py').to_dict())
  warmup, search, finetune = run.stages
  assert (warmup.epochs, search.epochs, finetune.epochs) == (60, 10, 90)
  lr = warmup.train['weights'].lr
  assert float(lr(60, lr.coefficients(60))) == pytest.approx(0.05)
  lr = finetune.train['weights'].lr
  first, last = (float(lr(e, lr.coefficients(90))) for e in (0, 90))
  assert first == pytest.approx(0.0854, rel=1e-3)
  assert last == pytest.approx(0, abs=1e-7)


def test_published_learning_rates_are_what_they_were(monkeypatch):
  """At every epoch of the ImageNet rows, to the digit: of the version whose
  configs had them in epochs."""
  monkeypatch.setattr(run_config, '_check_run', lambda run: None)
  for name, want in json.loads(
    (GOLDEN / 'learning_rates.json').read_text()
  ).items():
    config, stage, group = name.split('/')
    run = parse_config(read_config(config).to_dict())
    (stage,) = (one for one in run.stages if one.name == stage)
    lr = jax.jit(stage.train[group].lr)
    coefficients = stage.hyperparams(0).rates[group]
    got = [float(lr(epoch, coefficients)) for epoch in range(stage.epochs)]
    assert got == want, name


def test_configs_of_earlier_versions_in_todays_keys():
  """Learning rates in epochs, and keys that are gone or new; what is of today
  stays as it is."""
  path = GOLDEN / 'version_1/stopped/config.json'
  old = json.loads(path.read_text())['config']
  new = earlier.in_todays_keys(old)
  (_, search, finetune) = parse_config(new).stages
  assert finetune.gate_threshold == 0.5
  assert search.delta_by == 'epoch'
  lr = finetune.train['weights'].lr
  assert (lr.begin, lr.end) == (0.0, 1 / 30)
  assert lr.coefficients(1)['horizon'] == 30.0
  assert earlier.in_todays_keys(new) == new
  drops = {'schedule': 'steps', 'base': 0.1, 'drops': [10.0, 40.0]}
  stages = {'s': {'epochs': 70, 'train': {'w': {'match': 'x', 'lr': drops}}}}
  got = earlier.in_todays_keys({'stages': stages})['stages']['s']['train']['w']
  assert got['lr']['drops'] == [10 / 70, 40 / 70]
  for other in (3, None, {'stages': 3}, {'stages': {'s': {'train': {'w': 1}}}}):
    earlier.in_todays_keys(other)


def test_all_stages_can_be_made_shorter(config):
  config['epochs_scale'] = 0.1
  assert [s.epochs for s in parse_config(config).stages] == [1, 1, 3]


# What is refused: the key, its value, and the fix.


@pytest.mark.parametrize(
  ('path', 'value', 'message'),
  [
    ('bach_size', 3, r"'bach_size' \(did you mean 'batch_size'\?\)"),
    ('data.flipp', True, r"'data.flipp' \(did you mean 'flip'\?\)"),
    ('stages.search.penlty', 1, r"'stages.search.penlty' \(did you"),
    ('stages.warmup.train.weights.lr.bse', 1.0, r'weights.lr.bse'),
    ('network.name', 'vgg17', r"unknown network 'vgg17' \(did you mean 'vgg16"),
    ('data.image', 4, "data.image is 4.*'vgg7_digits'.*8 or more"),
    ('batch_size', 1.5, 'batch_size is 1.5; it must be of type int'),
    ('batch_size', True, 'batch_size is True; it must be of type int'),
    ('grad_accum_steps', 3, 'batch_size is 64.*grad_accum_steps, 3.*multiple'),
    ('stages.warmup.epochs', 0, 'stages.warmup.epochs is 0.*at least 1'),
    ('stages.search.epochs', -2, 'stages.search.epochs is -2.*at least 1'),
    ('stages.warmup.train.weights.lr.schedule', 'cosin', "mean 'cosine'"),
    ('stages.warmup.train.weights.lr.begin', 0.5, 'begin is 0.5 and end is 0.'),
    ('stages.warmup.train.weights.lr.drops', (10.0,), 'must be a fraction of'),
    ('epochs_scale', 0.0, 'epochs_scale is 0; it must be above 0'),
    ('order', ('warmup', 'serch'), "mean 'search'"),
    ('order', (), 'order is empty'),
    ('order', (1, 2), 'it must list stages'),
    ('order', None, 'it must list stages'),
    ('order', 5, "it must list stages: \\('warmup', 'search'\\)"),
    ('order', ('warmup', 'warmup'), 'twice'),
    ('order', ('warmup', 'finetune'), 'no stage before it searches'),
    ('stages', 3, 'it must be {name: stage}'),
    ('stages.warmup', 3, 'it must have the keys name, epochs'),
    ('stages.warmup.train', {}, "'warmup': train is empty"),
    ('stages.warmup.train', 3, 'stages.warmup.train is 3; it must be of type'),
    ('stages.warmup.train.weights.match', '(', r'match is .\(.*no regular exp'),
    ('stages.finetune.train.weights.match', 'x', "'finetune': pattern 'x'"),
    (
      'stages.search.train.gates.match',
      'params/conv.*',
      "no group.*'gates/.*'",
    ),
    (
      'stages.warmup.delta_end',
      1e4,
      "'warmup': delta_end is set, but no group",
    ),
    ('stages.warmup.train.weights.match', '.*', "'warmup'.*set delta_end"),
    ('stages.warmup.train.weights.nesterov', 1, 'must be of type bool'),
    ('data', 3, 'data is 3; it must have the keys'),
    ('data.mean', 0.5, 'data.mean is 0.5; it must be of type tuple'),
    (
      'data.mean',
      (0.5, 0.5),
      r'data.mean is \(0.5, 0.5\) and std.*per channel',
    ),
    ('data.classes', None, "data.classes must be set for 'digits'"),
    ('network.width', math.nan, 'network.width is nan; it must be a finite'),
    ('compute_dtype', 'bfloat61', "did you mean 'bfloat16'"),
  ],
)
def test_refused(config, path, value, message):
  with pytest.raises(errors.UserError, match=message):
    parse_config(changed(config, path, value))


@pytest.mark.parametrize(
  ('path', 'value', 'allowed'),
  [
    ('batch_size', -1, 'at least 1'),
    ('eval_batch_size', 0, 'at least 1'),
    ('seed', -1, 'in [0, 4294967296)'),
    ('seed', 2**32, 'in [0, 4294967296)'),
    ('grad_accum_steps', 0, 'at least 1'),
    ('checkpoint_steps', 0, 'at least 1'),
    ('max_nan_restarts', -1, 'at least 0'),
    ('profile', 0, 'at least 1'),
    ('network.width', 0.0, 'in (0, 8.0]'),
    ('network.width', 8.5, 'in (0, 8.0]'),
    ('data.image', 1025, 'in [1, 1024]'),
    ('data.classes', 1, 'in [2, 100000]'),
    ('data.validation', 0, 'at least 1'),
    ('data.train_limit', 0, 'at least 1'),
    ('data.crop_pad', -1, 'at least 0'),
    ('data.std', (0.0,), 'in (0, 1000000]'),
    ('stages.search.penalty', -0.1, 'at least 0'),
    ('stages.search.delta_end', 1.0, 'above 1'),
    ('stages.finetune.gate_threshold', 1.0, 'in (0, 1)'),
    ('stages.finetune.channel_multiple', 0, 'at least 1'),
    ('stages.warmup.label_smoothing', 1.0, 'in [0, 1)'),
    ('stages.warmup.ema', -0.1, 'in [0, 1)'),
    ('stages.warmup.train.weights.momentum', 5.0, 'in [0, 1)'),
    ('stages.warmup.train.weights.weight_decay', -1.0, 'at least 0'),
    ('stages.warmup.train.weights.lr.base', 0.0, 'above 0'),
  ],
)
def test_out_of_range(config, path, value, allowed):
  with pytest.raises(errors.UserError) as raised:
    parse_config(changed(config, path, value))
  assert str(raised.value) == f'{path} is {value}; it must be {allowed}'


def test_missing_key(config):
  del config['data']['mean']
  with pytest.raises(errors.UserError, match=r"lacks the key 'data\.mean'"):
    parse_config(config)


@pytest.mark.parametrize(
  ('parent', 'old'),
  [
    ('', 'accumulate'),
    ('', 'rollbacks'),
    ('stages.finetune.', 'prune_below'),
    ('stages.finetune.', 'prune_multiple'),
  ],
)
def test_a_key_of_an_earlier_version_names_the_new_one(config, parent, old):
  new = RENAMED_KEYS[old]
  with pytest.raises(errors.UserError) as raised:
    parse_config(changed(config, parent + old, 1))
  assert f"'{parent}{old}' (did you mean '{new}'?)" in str(raised.value)
  parse_config(
    changed(config, parent + new, {'gate_threshold': 0.5}.get(new, 1))
  )


def test_pruning_without_finetuning_is_allowed(config):
  config['stages']['finetune']['epochs'] = 0
  assert parse_config(config).stages[2].epochs == 0


@pytest.mark.parametrize(
  ('key', 'value', 'message'),
  [
    ('short_side', 200, 'short_side is 200, less than data.image, 224'),
    ('short_side', 0, r'short_side is 0; it must be in \[1, 16384\]'),
    (
      'crop_scale',
      (0.5, 0.2),
      r'crop_scale is \(0.5, 0.2\).*the smaller first',
    ),
    ('crop_scale', (0.5,), r'crop_scale is \(0.5,\).*two shares'),
    ('crop_scale', (0.0, 1.0), r'crop_scale is \(0.0, 1.0\).*in \(0, 1\]'),
    ('mean', (0.5,), r'mean is \(0.5,\) and std'),
    ('folder', '/nowhere', "'/nowhere', which has no directory 'train'"),
  ],
)
def test_refused_of_streamed_images(key, value, message):
  config = load(CONFIGS / 'mbv2_imagenet.py').to_dict()
  config['network']['name'] = 'resnet8_digits'  # traced faster
  assert parse_config(config).classes == 1000
  with pytest.raises(errors.UserError, match=message):
    parse_config(changed(config, f'data.{key}', value))


def test_one_flag_sets_all_stages():
  config = load(CONFIGS / 'quickstart.py')
  config.label_smoothing, config.ema, config.nesterov = 0.1, 0.99, True
  parsed = parse_config(config.to_dict())
  assert [s.label_smoothing for s in parsed.stages] == [0.1, 0.1, 0.1]
  assert [s.ema for s in parsed.stages] == [0.99, 0.0, 0.99]
  assert parsed.stages[0].train['weights'].nesterov
  assert not parsed.stages[1].train['gates'].nesterov
