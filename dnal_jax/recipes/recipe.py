"""The paper's three stages, and the baseline, as config values.

Numbers that differ between networks are arguments; the config that passes them
names their source. The numbers here are the same in all of the authors' code:
SGD with momentum 0.9 and without Nesterov; L2 on all weights; a search of gates
and classifier with learning rate 0.01 and no weight decay, in which delta grows
to 1e4; and the threshold 0.9.
"""

from collections.abc import Mapping
from typing import Any

from ml_collections import ConfigDict
from ml_collections.config_dict import placeholder


def base_config(network: str, data: Mapping[str, Any]) -> ConfigDict:
  """The keys of every run; everything that is not in the paper is off."""
  return ConfigDict(
    {
      'seed': 0,
      'network': {'name': network, 'width': 1.0},
      'data': data,
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
    }
  )


def stages(
  config: ConfigDict,  # a `base_config` to which `penalty` was added
  *,
  weight_decay: float,
  warmup: tuple[int, Mapping[str, Any]],  # epochs, learning rate
  search: int,  # epochs
  finetune: tuple[int, Mapping[str, Any]],
  baseline: tuple[int, Mapping[str, Any]],
) -> ConfigDict:
  """All stages by name; `config.order` lists those that run."""

  def train_weights(epochs, lr):
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

  def search_group(match):
    return {
      'match': match,
      'momentum': 0.9,
      'weight_decay': 0.0,
      'lr': {'schedule': 'constant', 'base': 0.01},
    }

  target: Any = config.target
  return ConfigDict(
    {
      'warmup': train_weights(*warmup),
      'search': {
        'epochs': search,
        'delta_end': 1e4,
        'penalty': config.get_ref('penalty'),
        'target': {kind: target.get_ref(kind) for kind in target},
        'label_smoothing': config.get_ref('label_smoothing'),
        'train': {
          'gates': search_group('gates/.*'),
          'head': search_group('params/head/.*'),
        },
      },
      'finetune': {
        **train_weights(*finetune),
        'gate_threshold': 0.9,
        # With 8, for example, widths are rounded up to multiples of 8.
        'channel_multiple': 1,
      },
      'baseline': train_weights(*baseline),
    }
  )


def stage_order(variant: str) -> tuple[str, ...]:
  """The names of the stages that run, for `--config=FILE:VARIANT`."""
  if variant not in ('', 'baseline'):
    raise ValueError(
      f"unknown variant '{variant}' after the config's name; known is"
      " 'baseline'; without a variant, warm-up, search and fine-tune run"
    )
  return ('baseline',) if variant else ('warmup', 'search', 'finetune')


def cosine(base: float, horizon: float, start: float = 0.0) -> dict[str, Any]:
  """base / 2 * (1 + cos(pi * (start + epoch) / horizon)) at an epoch."""
  return {
    'schedule': 'cosine',
    'base': base,
    'horizon': float(horizon),
    'start': float(start),
  }


def steps(base: float, *drops: float) -> dict[str, Any]:
  """`base`, divided by 10 at each of the epochs `drops`."""
  return {'schedule': 'steps', 'base': base, 'drops': drops}
