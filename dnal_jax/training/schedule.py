"""Learning-rate schedules."""

from collections.abc import Mapping
import dataclasses
import math
from typing import Any, Literal

import jax
import jax.numpy as jnp


@dataclasses.dataclass(frozen=True)
class LearningRate:
  """Learning rate at `epoch`, a fraction of the stage included.

  constant: base
  steps:    base * factor ** (number of `drops`, in epochs, that have passed)
  cosine:   base / 2 * (1 + cos(pi * (start + epoch) / horizon))

  `start` and `horizon` are in epochs: a warm-up of 80 epochs with horizon 160
  ends at half of base, a fine-tuning with start 30 and horizon 120 begins
  a quarter down the curve (the reference's settings, which stand in configs).
  """

  base: float
  schedule: Literal['constant', 'steps', 'cosine'] = 'constant'
  drops: tuple[float, ...] = ()
  factor: float = 0.1
  horizon: float = 0.0
  start: float = 0.0

  def __post_init__(self):
    if self.base <= 0:
      raise ValueError(f'base is {self.base}; it must be positive')
    if self.schedule == 'cosine' and self.horizon <= 0:
      raise ValueError(
        f'horizon is {self.horizon}; cosine needs the length of its half'
        ' period in epochs'
      )

  @property
  def numbers(self) -> dict[str, Any]:
    """Its numbers by name, of which floats are the leaves."""
    names = ('base', 'drops', 'factor', 'horizon', 'start')
    return {name: getattr(self, name) for name in names}

  def __call__(
    self,
    epoch: jax.typing.ArrayLike,
    numbers: Mapping[str, Any] | None = None,
  ) -> jax.Array:
    """The rate; with `numbers`, by those instead of its own."""
    of = self.numbers if numbers is None else numbers
    epoch = jnp.asarray(epoch, jnp.float32)
    if self.schedule == 'cosine':
      position = jnp.clip((of['start'] + epoch) / of['horizon'], 0.0, 1.0)
      return of['base'] / 2 * (1 + jnp.cos(math.pi * position))
    drops = jnp.asarray(of['drops'] if self.schedule == 'steps' else ())
    return of['base'] * of['factor'] ** (epoch >= drops).sum()
