"""Limits of values, declared at dataclass fields and checked in one place.

  width: Annotated[float, Range(above=0, max=WIDTH)] = 1.0

Each dataclass that declares ranges calls `check(self)` in `__post_init__`.
"""

from collections.abc import Mapping
import dataclasses
import functools
import typing
from typing import Any

# How large a network a config or a file may ask for. These are far above what
# is trained, and low enough that the graph of any network within them (which
# `walk.MAX_PARAMS` limits as well) takes little memory.
NAME = 100  # characters
WIDTH = 8.0  # multiplier
CLASSES = 100_000
SIDE = 1024  # of an image, in pixels
CHANNELS = 64  # of an image
SHORT_SIDE = 16 * SIDE  # of an image before its centre is cut out
MEAN = 10**6  # magnitude of a mean or a standard deviation of pixels


@dataclasses.dataclass(frozen=True)
class Range:
  """An interval of numbers; each end is open, closed or absent.

  For a tuple, the range of each element. None is in every range: the type of
  the field says whether it is allowed.
  """

  min: float | None = None
  above: float | None = None
  max: float | None = None
  below: float | None = None

  def __contains__(self, value: Any) -> bool:
    """False for NaN."""
    return (
      (self.min is None or value >= self.min)
      and (self.above is None or value > self.above)
      and (self.max is None or value <= self.max)
      and (self.below is None or value < self.below)
    )

  def describe(self) -> str:
    """For messages: 'at least 1', 'above 0', 'in (0, 1]'."""
    low = self.above if self.min is None else self.min
    high = self.below if self.max is None else self.max
    if low is not None and high is not None:
      left = '(' if self.min is None else '['
      right = ')' if self.max is None else ']'
      return f'in {left}{low}, {high}{right}'
    if high is None:
      return f'above {low}' if self.min is None else f'at least {low}'
    return f'below {high}' if self.max is None else f'at most {high}'


def check(value: Any) -> None:
  """Checks all fields of a dataclass that declare a `Range`.

  Raises:
    ValueError: a field is out of its range; names the field, its value and
      the range.
  """
  for name, allowed in _ranges(type(value)).items():
    got = getattr(value, name)
    for one in got if isinstance(got, tuple) else (got,):
      if one is not None and one not in allowed:
        raise ValueError(f'{name} is {got}; it must be {allowed.describe()}')


@functools.cache
def _ranges(kind: type) -> Mapping[str, Range]:
  """{field: range} of a dataclass."""
  hints = typing.get_type_hints(kind, include_extras=True)
  return {
    name: extra
    for name, hint in hints.items()
    for extra in getattr(hint, '__metadata__', ())
    if isinstance(extra, Range)
  }
