"""The paper's three stages, and the baseline, as config values.

Configs call `stages`; numbers that differ between networks are arguments,
each with its source in the config that gives it. What is here is common to
all of the authors' code: SGD with momentum 0.9 without Nesterov, L2 on all
weights, a search with constant learning rate 0.01 and no weight decay, over
gates and classifier, delta growing to 1e4, and the threshold 0.9.
"""

from collections.abc import Mapping
from typing import Any

from ml_collections import ConfigDict, FieldReference


def stages(
  *,
  penalty: FieldReference,  # lambda
  weight_decay: float,
  warmup: tuple[int, Mapping[str, Any]],  # epochs, learning rate
  search: int,  # epochs
  finetune: tuple[int, Mapping[str, Any]],
  baseline: tuple[int, Mapping[str, Any]],
) -> ConfigDict:
  """Every stage by name; `config.order` says which are run."""

  def weights(lr):
    return {
      'weights': {
        'match': 'params/.*',
        'momentum': 0.9,
        'weight_decay': weight_decay,
        'lr': dict(lr),
      }
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
      'warmup': {'epochs': warmup[0], 'train': weights(warmup[1])},
      'search': {
        'epochs': search,
        'delta_end': 1e4,
        'penalty': penalty,
        'train': {
          'gates': constant('gates/.*'),
          'head': constant('params/head/.*'),
        },
      },
      'finetune': {
        'epochs': finetune[0],
        'prune_below': 0.9,
        'train': weights(finetune[1]),
      },
      'baseline': {'epochs': baseline[0], 'train': weights(baseline[1])},
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
