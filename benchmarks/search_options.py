r"""What each option of a search gains: a config file for `dnal_jax.compare`.

  python -m dnal_jax.compare --config=benchmarks/search_options.py \
    --config.network.width=0.125 --config.data.train_limit=20000 \
    --config.stages.warmup.epochs=6 --config.stages.search.epochs=2 \
    --config.stages.finetune.epochs=8 --targets=macs=0.25 --workdir=DIR \
    --methods=dnal,dnal-weights,dnal-step,dnal-recalibrated,target,target-frozen,target-epoch,target-recalibrated

VGG16 on Fashion-MNIST. `dnal` is the paper's search, to which one option is
added; `target` is the search under a target, from which one is taken away, or
to which one is added. All have the same warm-up, and those of the paper's
search the same lambda.
"""

from collections.abc import Callable
from typing import Any

from ml_collections import ConfigDict

from dnal_jax import compare
from dnal_jax.config import read_config


def get_config(variant: str = '') -> ConfigDict:
  register('dnal-weights', 'all weights train on in the search', weights_train)
  register('dnal-step', 'delta grows from step to step', delta_by('step'))
  register(
    'dnal-recalibrated', 'BatchNorm recalibrated after pruning', recalibrated
  )
  register('target-frozen', 'only the classifier trains on', weights_frozen)
  register('target-epoch', 'delta grows by the epoch', delta_by('epoch'))
  register('target-recalibrated', 'BatchNorm recalibrated', recalibrated)
  return read_config(f'vgg16_fashion_mnist:{variant}')


def register(
  name: str, text: str, change: Callable[[compare.Problem, Any], None]
) -> None:
  """Registers the method before the dash, with one option changed."""
  method = compare.METHODS[name.partition('-')[0]]

  def make(problem, target, penalty):
    config = method.make(problem, target, penalty)
    change(problem, config['stages'])
    return config

  compare.register(compare.Method(name, text, make, tuned=method.tuned))


def weights_train(problem, stages):
  stages['search']['train'] = problem.target['stages']['search']['train']


def weights_frozen(problem, stages):
  stages['search']['train'] = problem.paper['stages']['search']['train']


def delta_by(unit):
  def change(_, stages):
    stages['search']['delta_by'] = unit

  return change


def recalibrated(_, stages):
  stages['finetune']['recalibrate_batches'] = 60
