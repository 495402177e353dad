"""Ranges declared at dataclass fields."""

import dataclasses
import math
import typing

import pytest

from dnal_jax import data, limits
from dnal_jax.config import NetworkConfig, RunConfig
from dnal_jax.limits import Range
from dnal_jax.training.optimizer import ParamGroup
from dnal_jax.training.schedule import LearningRate
from dnal_jax.training.stages import Stage


@pytest.mark.parametrize(
  ('allowed', 'inside', 'outside', 'text'),
  [
    (Range(min=1), (1, 2, None), (0,), 'at least 1'),
    (Range(above=0), (0.1,), (0, -1), 'above 0'),
    (Range(max=3), (3, -5), (4,), 'at most 3'),
    (Range(below=3), (2.9,), (3,), 'below 3'),
    (Range(min=0, below=1), (0, 0.9, (0, 0.5)), (1, (0.5, 1)), 'in [0, 1)'),
    (Range(above=0, max=1), (0.1, 1), (0, 1.1, math.nan), 'in (0, 1]'),
  ],
)
def test_ranges(allowed, inside, outside, text):
  kind = dataclasses.make_dataclass(
    'Kind', [('x', typing.Annotated[object, allowed])]
  )
  for value in inside:
    limits.check(kind(value))
  for value in outside:
    with pytest.raises(ValueError, match='x is') as raised:
      limits.check(kind(value))
    assert str(raised.value) == f'x is {value}; it must be {text}'


@pytest.mark.parametrize(
  'kind', [data.Data, NetworkConfig, RunConfig, LearningRate, ParamGroup, Stage]
)
def test_numbers_have_ranges_except_these(kind):
  """A new number needs a range, or a reason to be added here."""
  without = {
    'Stage.epochs',  # depends on what else the stage does
    *(f'LearningRate.{n}' for n in ('drops', 'factor')),
  }
  hints = typing.get_type_hints(kind)
  numbers = {
    name
    for name, hint in hints.items()
    if {hint, *typing.get_args(hint)} & {int, float}
  }
  left = {
    f'{kind.__name__}.{name}' for name in numbers - {*limits._ranges(kind)}
  }
  assert left == {name for name in without if name.startswith(kind.__name__)}
