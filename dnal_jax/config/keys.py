"""The keys of a config: which there are, and which one was meant."""

from collections.abc import Mapping
import difflib
from typing import Any

from dnal_jax import errors

# Of commands: lists the keys of a config.
LIST_FLAG = '--list-overrides'

# Keys of earlier versions and what they are now, at the same place.
RENAMED_KEYS = {
  'accumulate': 'grad_accum_steps',
  'rollbacks': 'max_nan_restarts',
  'prune_below': 'gate_threshold',
  'prune_multiple': 'channel_multiple',
}

# Keys that some configs lack, and what to do.
_ELSEWHERE = {
  'data.folder': 'folders of images are read by configs for ImageNet: start'
  ' from one, such as configs/mbv2_imagenet.py;',
}


def check_key(config: Mapping[str, Any], key: str) -> None:
  """Raises UserError unless a config has `key`, such as 'data.image'; names
  keys like it, wherever they are, or those that there are in its place."""
  value, above = config, ''
  parts = key.split('.')
  for depth, name in enumerate(parts):
    if not isinstance(value, Mapping):
      return  # ml_collections knows elements of tuples, and refuses others
    name = name.partition('[')[0]
    if name not in value:
      names = {known: known.rpartition('.')[2] for known in all_keys(config)}
      wanted = RENAMED_KEYS.get(name, name)
      near = difflib.get_close_matches(wanted, {*names.values()}, cutoff=0.7)
      like = [known for known in names if names[known] in near]
      here = [known for known in like if known.rpartition('.')[0] == above]
      like = here or like
      rest = '.'.join(parts[depth + 1 :])
      like = [f'{k}.{rest}' if f'{k}.{rest}' in names else k for k in like]
      hint = f'did you mean {" or ".join(like[:4])}?'
      if key in _ELSEWHERE:
        hint = _ELSEWHERE[key]
      elif not like:
        hint = f'{above or "the config"} has {", ".join(value)};'
      raise errors.UserError(
        f"unknown config key '{key}'; {hint} {LIST_FLAG} lists all"
      )
    value, above = value[name], f'{above}.{name}'.strip('.')


def all_keys(config: Mapping[str, Any], above: str = '') -> dict[str, Any]:
  """{'a': {'b': x}} -> {'a': {'b': x}, 'a.b': x}."""
  found = {}
  for name, value in config.items():
    found[f'{above}{name}'] = value
    if isinstance(value, Mapping):
      found |= all_keys(value, f'{above}{name}.')
  return found
