"""Configs that earlier versions kept in run folders, in today's keys."""

from collections.abc import Mapping
from typing import Any

from dnal_jax.config.keys import RENAMED_KEYS

# Keys that earlier configs did not have, with what they meant.
_NO_TEACHER = {'teacher': None, 'weight': 0.5, 'temperature': 2.0}
_ADDED = {
  'epochs_scale': 1.0,
  'init_at': 'warmup',
  'distill': _NO_TEACHER,
}
_ADDED_TO_A_SEARCH = {'delta_by': 'epoch'}
_NO_TARGET = {'macs': None, 'params': None}
_ADDED_TO_A_CUT = {
  'recalibrate_batches': 0,
  'prune_by': 'gates',
  'prune_to': _NO_TARGET,
}
_MAY_HAVE_A_TEACHER = ('finetune', 'baseline')


def in_todays_keys(config: Any) -> Any:
  """A config of any version; what is no config is returned as it is.

  Keys were renamed, learning rates had `horizon`, `start` and `drops` in epochs
  and not as fractions of their stage, and there were fewer keys.
  """
  config = _renamed(config)
  if not isinstance(config, dict):
    return config
  stages = config.get('stages')
  if isinstance(stages, dict):
    in_epochs = 'epochs_scale' not in config
    stages = {n: _stage(n, s, in_epochs) for n, s in stages.items()}
  return {**_ADDED, **config, 'stages': stages}


def _renamed(value: Any) -> Any:
  if not isinstance(value, dict):
    return value
  return {
    RENAMED_KEYS.get(key, key): _renamed(child) for key, child in value.items()
  }


def _stage(name: str, stage: Any, in_epochs: bool) -> Any:
  if not isinstance(stage, dict) or not isinstance(stage.get('train'), dict):
    return stage
  groups = stage['train']
  if in_epochs:
    groups = {
      name: {**group, 'lr': _in_fractions(group['lr'], stage.get('epochs'))}
      if isinstance(group, dict) and isinstance(group.get('lr'), dict)
      else group
      for name, group in groups.items()
    }
  added = {
    **(_ADDED_TO_A_SEARCH if 'delta_end' in stage else {}),
    **(_ADDED_TO_A_CUT if 'gate_threshold' in stage else {}),
    **({'distill': _NO_TEACHER} if name in _MAY_HAVE_A_TEACHER else {}),
  }
  return {**added, **stage, 'train': groups}


def _in_fractions(lr: Mapping[str, Any], epochs: Any) -> dict[str, Any]:
  """A learning rate whose numbers are in epochs of its stage."""
  rest = {k: v for k, v in lr.items() if k not in ('horizon', 'start')}
  numbers = [epochs, lr.get('horizon'), lr.get('start', 0.0)]
  if not all(isinstance(n, int | float) for n in numbers) or not all(
    numbers[:2]
  ):
    drops = lr.get('drops')
    if isinstance(drops, list | tuple) and epochs:
      rest['drops'] = [drop / epochs for drop in drops]
    return rest
  epochs, horizon, start = numbers
  return {**rest, 'begin': start / horizon, 'end': (start + epochs) / horizon}
