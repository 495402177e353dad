"""The paper's three stages, and the baseline, as config values.

Configs call `stages`. Numbers that differ between networks are arguments; the
config that passes one cites its source. The values here are common to all of
the authors' code: SGD with momentum 0.9 without Nesterov, L2 on all weights, a
search that trains gates and classifier with the constant learning rate 0.01 and
no weight decay, delta growing to 1e4, and the threshold 0.9.
"""

from collections.abc import Mapping
from typing import Any

from ml_collections import ConfigDict
from ml_collections.config_dict import placeholder


def new(network: str, data: Mapping[str, Any]) -> ConfigDict:
  """Values that every run has; what the paper does not use is off."""
  return ConfigDict(
    {
      'seed': 0,
      'network': {'name': network, 'width': 1.0},
      'data': data,
      'tensorboard': True,
      'checkpoint_steps': placeholder(int),  # None: after each epoch only
      # Restarts at half the learning rates after a NaN or infinity.
      'max_nan_restarts': 0,
      'profile': placeholder(int),  # steps to trace in each stage; None: none
      'compute_dtype': 'float32',  # or 'bfloat16'; parameters stay float32
      'grad_accum_steps': 1,  # parts of a batch, to save memory
      'label_smoothing': 0.0,
      'ema': 0.0,  # decay of an average of the weights; 0: no average
      'nesterov': False,
    }
  )


def stages(
  config: ConfigDict,  # of `new`, with the penalty (lambda)
  *,
  weight_decay: float,
  warmup: tuple[int, Mapping[str, Any]],  # epochs, learning rate
  search: int,  # epochs
  finetune: tuple[int, Mapping[str, Any]],
  baseline: tuple[int, Mapping[str, Any]],
) -> ConfigDict:
  """All stages by name; `config.order` lists those that run."""

  def trained(epochs, lr):
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

  def constant(match):
    return {
      'match': match,
      'momentum': 0.9,
      'weight_decay': 0.0,
      'lr': {'schedule': 'constant', 'base': 0.01},
    }

  return ConfigDict(
    {
      'warmup': trained(*warmup),
      'search': {
        'epochs': search,
        'delta_end': 1e4,
        'penalty': config.get_ref('penalty'),
        'label_smoothing': config.get_ref('label_smoothing'),
        'train': {
          'gates': constant('gates/.*'),
          'head': constant('params/head/.*'),
        },
      },
      'finetune': {
        **trained(*finetune),
        'gate_threshold': 0.9,
        'channel_multiple': 1,  # kept widths are rounded up to it
      },
      'baseline': trained(*baseline),
    }
  )


def order(variant: str) -> tuple[str, ...]:
  """The stages of `--config=FILE` and of `--config=FILE:baseline`."""
  if variant not in ('', 'baseline'):
    raise ValueError(
      f"unknown variant '{variant}' behind the config's name; there is"
      " 'baseline', or none for warm-up, search and fine-tune"
    )
  return ('baseline',) if variant else ('warmup', 'search', 'finetune')


def cosine(base: float, horizon: float, start: float = 0.0) -> dict[str, Any]:
  """A learning rate from base / 2 * (1 + cos(pi * start / horizon))."""
  return {
    'schedule': 'cosine',
    'base': base,
    'horizon': float(horizon),
    'start': float(start),
  }


def steps(base: float, *drops: float) -> dict[str, Any]:
  """A learning rate that is divided by 10 after each of `drops` epochs."""
  return {'schedule': 'steps', 'base': base, 'drops': drops}
