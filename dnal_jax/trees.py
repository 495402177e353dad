"""Nested dicts of arrays as flat dicts {path: leaf}, and back.

A path joins the keys by slashes: 'params/head/bias'.
"""

from collections.abc import Mapping
from typing import Any

from flax import traverse_util


def flatten(tree: Mapping[str, Any]) -> dict[str, Any]:
  """{'a': {'b': x}} -> {'a/b': x}."""
  flat: Any = traverse_util.flatten_dict(dict(tree), sep='/')
  return flat


def unflatten(flat: Mapping[str, Any]) -> dict[str, Any]:
  """{'a/b': x} -> {'a': {'b': x}}."""
  return traverse_util.unflatten_dict(dict(flat), sep='/')
