"""The paper's three stages, and the baseline, as config values.

Numbers that differ between networks are arguments; the config that passes them
names their source. The numbers here are the same in all of the authors' code:
SGD with momentum 0.9 and without Nesterov; L2 on all weights; a search of gates
and classifier with learning rate 0.01 and no weight decay, in which delta grows
to 1e4; and the threshold 0.9.
"""

from collections.abc import Mapping
import functools
import math
from typing import Any

from ml_collections import ConfigDict
from ml_collections.config_dict import placeholder

VARIANTS = '', 'target', 'baseline', 'uniform'


def base_config(network: str, data: Mapping[str, Any]) -> ConfigDict:
  """The keys of every run; everything that is not in the paper is off."""
  return ConfigDict(
    {
      'seed': 0,
      'network': {'name': network, 'width': 1.0},
      'data': data,
      'init_from': placeholder(str),  # DIR of a run to begin with
      'init_at': 'warmup',  # of that run, or 'end'
      'epochs_scale': 1.0,  # multiplies the epochs of every stage
      'tensorboard': True,
      # Steps between checkpoints; None: only one after each epoch.
      'checkpoint_steps': placeholder(int),
      # How often the run may go back to a checkpoint and halve the learning
      # rates when a loss or a gradient is not finite.
      'max_nan_restarts': 0,
      'profile': placeholder(int),  # steps traced per stage; None: no trace
      'compute_dtype': 'float32',  # or 'bfloat16'; parameters stay float32
      'grad_accum_steps': 1,  # parts of a batch, if it does not fit at once
      'label_smoothing': 0.0,
      'ema': 0.0,  # decay of the average of the weights; 0: no average
      'nesterov': False,
      # What the network may cost, in place of a penalty: up to 1 a share of the
      # full network, above 1 a number. None: no target.
      'target': {'macs': placeholder(float), 'params': placeholder(float)},
      # A teacher of the fine-tuning and of the baseline: 'warmup', or the
      # folder of a run. None: no teacher.
      'distill': {
        'teacher': placeholder(str),
        'weight': 0.5,
        'temperature': 2.0,
      },
    }
  )


def add_stages(
  config: ConfigDict,  # a `base_config`
  variant: str,
  *,
  penalty: float,  # lambda
  weight_decay: float,
  warmup: tuple[int, Mapping[str, Any]],  # epochs, learning rate
  search: int,  # epochs
  finetune: tuple[int, Mapping[str, Any]],
  baseline: tuple[int, Mapping[str, Any]],
) -> None:
  """Adds `penalty`, all stages by name, and `order`, which lists those that
  run, for `--config=FILE:VARIANT`.

  Variants: '' is the paper's warm-up, search and fine-tuning. 'target' is ours:
  the search holds the cost at config.target, which has to be set, in place of
  the penalty; all weights train on in it, at the rate with which the warm-up
  ends, and delta grows by the step. In 'baseline' the full network trains
  without gates, in 'uniform' (ours) one that costs config.target and has the
  same share of channels everywhere.

  Raises:
    ValueError: there is no such variant.
  """
  if variant not in VARIANTS:
    known = ', '.join(repr(name) for name in VARIANTS[1:])
    raise ValueError(
      f"unknown variant '{variant}' after the config's name; known are {known};"
      ' without one, warm-up, search and fine-tuning run as published'
    )
  to_target = variant in ('target', 'uniform')
  config.penalty = placeholder(float) if to_target else penalty
  searching = variant in ('', 'target')
  stages = 'warmup', 'search', 'finetune'
  config.order = stages if searching else ('baseline',)
  weights = functools.partial(_training_weights, config, weight_decay)
  config.stages = ConfigDict(
    {
      'warmup': weights(*warmup),
      'search': _searching(
        config, weight_decay, search, warmup[1] if to_target else None
      ),
      'finetune': {
        **weights(*finetune),
        'distill': _references(config.distill),
        'gate_threshold': 0.9,
        'prune_by': 'gates',
        # In place of the search's target, or for other rankings than by gates.
        'prune_to': {'macs': placeholder(float), 'params': placeholder(float)},
        # With 8, for example, widths are rounded up to multiples of 8.
        'channel_multiple': 1,
        'recalibrate_batches': 0,  # for BatchNorm, after pruning
      },
      'baseline': {
        **weights(*baseline),
        'distill': _references(config.distill),
        **(_narrowing(config) if variant == 'uniform' else {}),
      },
    }
  )


def _training_weights(
  config: ConfigDict, weight_decay: float, epochs: int, lr: Mapping[str, Any]
) -> dict[str, Any]:
  return {
    'epochs': epochs,
    'label_smoothing': config.get_ref('label_smoothing'),
    'ema': config.get_ref('ema'),
    'train': {
      'weights': {
        'match': 'params/.*',
        'momentum': 0.9,
        'nesterov': config.get_ref('nesterov'),
        'weight_decay': weight_decay,
        'lr': dict(lr),
      }
    },
  }


def _narrowing(config: ConfigDict) -> dict[str, Any]:
  return {'prune_by': 'uniform', 'prune_to': _references(config.target)}


def _references(group: Any) -> dict[str, Any]:
  """To the values of a group at the top of a config."""
  return {key: group.get_ref(key) for key in group}


def _searching(
  config: ConfigDict, weight_decay: float, epochs: int, warmup_lr: Any
) -> dict[str, Any]:
  """`warmup_lr` None: as in the paper; else weights go on at its last rate."""
  to_target = warmup_lr is not None

  def group(match, base=0.01, decay=0.0):
    return {
      'match': match,
      'momentum': 0.9,
      'weight_decay': decay,
      'lr': {'schedule': 'constant', 'base': base},
    }

  groups = {'gates': group('gates/.*')}
  if to_target:
    groups['weights'] = group(
      'params/.*', _last_rate(**warmup_lr), weight_decay
    )
  else:
    groups['head'] = group('params/head/.*')
  return {
    'epochs': epochs,
    # 1e4 is the paper's; at 300 gates stay trainable to the end.
    'delta_end': 300.0 if to_target else 1e4,
    'delta_by': 'step' if to_target else 'epoch',
    'penalty': config.get_ref('penalty'),
    'target': _references(config.target),
    'label_smoothing': config.get_ref('label_smoothing'),
    'train': groups,
  }


def _last_rate(
  schedule: str, base: float, end: float = 1.0, drops: Any = (), **_: Any
) -> float:
  """The learning rate at the end of a stage."""
  if schedule == 'cosine':
    return round(base / 2 * (1 + math.cos(math.pi * end)), 9)
  return base / 10 ** len(drops)


def cosine(base: float, begin: float = 0.0, end: float = 1.0) -> dict[str, Any]:
  """base / 2 * (1 + cos(pi * x)), where x runs from `begin` to `end` over the
  stage."""
  return {'schedule': 'cosine', 'base': base, 'begin': begin, 'end': end}


def steps(base: float, *drops: float) -> dict[str, Any]:
  """`base`, divided by 10 at each of `drops`, which are fractions of the
  stage."""
  return {'schedule': 'steps', 'base': base, 'drops': drops}
