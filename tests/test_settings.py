"""Configs become settings; what cannot be a run is refused with the fix."""

import copy
import importlib.util
import math
import pathlib

import jax.numpy as jnp
import pytest

from dnal_jax import errors, trees
from dnal_jax.config import parse_config
from dnal_jax.graph import walk

CONFIGS = pathlib.Path(__file__).parent.parent / 'configs'
SHARED = {'recipe', 'small_images', 'imagenet'}
RUNNABLE = [p for p in sorted(CONFIGS.glob('*.py')) if p.stem not in SHARED]


def load(path, variant=''):
  spec = importlib.util.spec_from_file_location(path.stem, path)
  module = importlib.util.module_from_spec(spec)
  spec.loader.exec_module(module)
  return module.get_config(variant)


@pytest.fixture(autouse=True)
def root_on_path(monkeypatch):
  """As `python -m dnal_jax.main` has it when run from the project's root."""
  monkeypatch.syspath_prepend(str(CONFIGS.parent))


@pytest.fixture
def config():
  return load(CONFIGS / 'quickstart.py').to_dict()


@pytest.mark.parametrize('variant', ['', 'baseline'])
@pytest.mark.parametrize('path', RUNNABLE, ids=lambda p: p.stem)
def test_every_config_is_a_run(path, variant):
  """It parses, and its patterns match something in its own network."""
  run = parse_config(load(path, variant).to_dict())
  shapes = walk.graph_of(run.build(), run.image_shape).shapes
  paths = trees.flatten({k: shapes[k] for k in ('params', 'gates')})
  names = [stage.name for stage in run.stages]
  assert names == (
    ['baseline'] if variant else ['warmup', 'search', 'finetune']
  )
  for stage in run.stages:
    trained = stage.groups(paths)
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


def test_cifar_schedule_continues_where_the_warmup_broke_off():
  """Ours, in the proportions of the published MobileNetV2: half a cosine,
  then from a quarter of another to its end."""
  run = parse_config(load(CONFIGS / 'vgg16_cifar10.py').to_dict())
  warmup, search, finetune = run.stages
  assert (warmup.epochs, search.epochs, finetune.epochs) == (60, 10, 90)
  rate = warmup.train['weights'].lr
  assert float(rate(60)) == pytest.approx(0.05)
  rate = finetune.train['weights'].lr
  assert float(rate(90)) == pytest.approx(0, abs=1e-7)
  assert float(rate(jnp.array(0))) == pytest.approx(0.0854, rel=1e-3)


@pytest.mark.parametrize(
  ('path', 'value', 'message'),
  [
    ('bach_size', 3, r"'bach_size' \(did you mean 'batch_size'\?\)"),
    ('data.flipp', True, r"'data.flipp' \(did you mean 'flip'\?\)"),
    ('stages.search.penlty', 1, r"'stages.search.penlty' \(did you"),
    ('stages.warmup.train.weights.lr.bse', 1.0, r'weights.lr.bse'),
    ('network.name', 'vgg17', r"unknown network 'vgg17' \(did you mean 'vgg16"),
    ('network.width', 0.0, 'network.width is 0.0; it must be positive'),
    ('data.image', 4, "too small for network 'vgg7_digits'.*8 or more"),
    ('data.std', (0.0,), 'std positive'),
    ('batch_size', -1, 'batch_size is -1; it must be positive'),
    ('batch_size', 1.5, 'batch_size is 1.5; it must be of type int'),
    ('stages.warmup.epochs', 0, 'stages.warmup.epochs is 0'),
    ('stages.search.epochs', -2, 'stages.search.epochs is -2'),
    ('stages.search.penalty', -0.1, 'must not be negative'),
    ('stages.warmup.train.weights.lr.schedule', 'cosin', "mean 'cosine'"),
    ('stages.warmup.train.weights.lr.base', 0.0, 'must be positive'),
    ('order', ('warmup', 'serch'), "mean 'search'"),
    ('order', (), 'order is empty'),
    ('order', (1, 2), 'it must list stages'),
    ('order', None, 'it must list stages'),
    ('stages', 3, 'it must be {name: stage}'),
    ('stages.warmup', 3, 'it must have the keys name, epochs'),
    ('stages.warmup.train', {}, 'has an empty train'),
    ('stages.warmup.train', 3, 'stages.warmup.train is 3; it must be of type'),
    ('stages.warmup.train.weights.momentum', 5.0, 'momentum is 5.0'),
    ('stages.warmup.train.weights.weight_decay', -1.0, 'not be negative'),
    ('stages.warmup.train.weights.match', '(', 'no regular expression'),
    ('stages.finetune.train.weights.match', 'x', "'finetune': pattern 'x'"),
    ('stages.search.train.gates.match', 'params/conv.*', 'no group that'),
    ('stages.warmup.delta_end', 1e4, "'warmup' has delta_end, but no group"),
    ('stages.warmup.train.weights.match', '.*', 'trains gates, which are open'),
    ('data.mean', 0.5, 'data.mean is 0.5; it must be of type tuple'),
    ('data.crop_pad', -1, 'data.crop_pad is -1'),
    ('data.train_limit', 0, 'data.train_limit is 0; it must be positive'),
    ('network.width', math.nan, 'network.width is nan; it must be a finite'),
    ('seed', 2**70, 'it must fit 32 bits'),
    ('order', ('warmup', 'warmup'), 'twice'),
    ('order', ('warmup', 'finetune'), 'no stage before it searches'),
    ('data', 3, 'data is 3; it must have the keys'),
    ('compute_dtype', 'bfloat61', "did you mean 'bfloat16'"),
    ('checkpoint_steps', 0, 'checkpoint_steps is 0; it must be positive'),
    ('stages.warmup.label_smoothing', 1.0, r'label_smoothing is 1.0; it must'),
    ('stages.warmup.ema', -0.1, r'ema is -0.1; it must be in \[0, 1\)'),
    ('stages.warmup.train.weights.nesterov', 1, 'must be of type bool'),
    ('data.classes', None, "data.classes must be set for 'digits'"),
  ],
)
def test_refused(config, path, value, message):
  config = copy.deepcopy(config)
  *parents, key = path.split('.')
  node = config
  for parent in parents:
    node = node[parent]
  node[key] = value
  with pytest.raises(errors.UserError, match=message):
    parse_config(config)


def test_missing_key(config):
  del config['data']['mean']
  with pytest.raises(errors.UserError, match=r"lacks the key 'data\.mean'"):
    parse_config(config)


def test_pruning_without_finetuning_is_allowed(config):
  config['stages']['finetune']['epochs'] = 0
  assert parse_config(config).stages[2].epochs == 0


@pytest.mark.parametrize(
  ('key', 'value', 'message'),
  [
    ('short_side', 200, 'short_side is 200, less than data.image, 224'),
    ('crop_scale', (0.5, 0.2), 'must be two shares of the area'),
    ('crop_scale', (0.5,), 'must be two shares of the area'),
    ('mean', (0.5,), 'must be of one length'),
    ('folder', '/nowhere', "'/nowhere', which has no directory 'train'"),
  ],
)
def test_refused_of_streamed_images(key, value, message):
  config = load(CONFIGS / 'mbv2_imagenet.py').to_dict()
  config['network']['name'] = 'resnet8_digits'  # walked faster
  assert parse_config(config).classes == 1000
  config['data'][key] = value
  with pytest.raises(errors.UserError, match=message):
    parse_config(config)


def test_one_flag_sets_all_stages():
  config = load(CONFIGS / 'quickstart.py')
  config.label_smoothing, config.ema, config.nesterov = 0.1, 0.99, True
  parsed = parse_config(config.to_dict())
  assert [s.label_smoothing for s in parsed.stages] == [0.1, 0.1, 0.1]
  assert [s.ema for s in parsed.stages] == [0.99, 0.0, 0.99]
  assert parsed.stages[0].train['weights'].nesterov
  assert not parsed.stages[1].train['gates'].nesterov
