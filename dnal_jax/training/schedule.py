"""Learning-rate schedules, as fractions of the stage that they are for."""

from collections.abc import Mapping
import dataclasses
import math
from typing import Annotated, Any, Literal

import jax
import jax.numpy as jnp

from dnal_jax import limits
from dnal_jax.limits import Range


@dataclasses.dataclass(frozen=True)
class LearningRate:
  """Learning rate after the fraction t of a stage, 0 to 1:

      constant: base
      steps:    base * factor ** (number of drops <= t)
      cosine:   base / 2 * (1 + cos(pi * (begin + (end - begin) * t)))

  So a stage with other epochs has the same curve. With begin 0 and end 1/2 a
  warm-up ends at half of base, in the middle of the curve; a fine-tuning with
  begin 1/4 starts a quarter down it (settings of the authors' code, which are
  in epochs, see configs).
  """

  base: Annotated[float, Range(above=0)]
  schedule: Literal['constant', 'steps', 'cosine'] = 'constant'
  drops: tuple[float, ...] = ()
  factor: float = 0.1
  begin: Annotated[float, Range(min=0, below=1)] = 0.0
  end: Annotated[float, Range(above=0, max=1)] = 1.0

  def __post_init__(self):
    limits.check(self)
    if self.begin >= self.end:
      raise ValueError(
        f'begin is {self.begin:g} and end is {self.end:g}, which are fractions'
        ' of a cosine; make begin smaller than end'
      )
    if not all(0 <= drop <= 1 for drop in self.drops):
      raise ValueError(
        f'drops is {self.drops}; each must be a fraction of the stage, 0 to 1'
      )

  def coefficients(self, epochs: int) -> dict[str, Any]:
    """The numbers of the formula for a stage of so many epochs, by name, in
    epochs; a pytree whose leaves are floats."""
    horizon = max(epochs, 1) / (self.end - self.begin)
    return {
      'base': self.base,
      # Rounded, so that they are the epochs from which fractions were made.
      'drops': tuple(round(drop * epochs, 6) for drop in self.drops),
      'factor': self.factor,
      'horizon': round(horizon, 6),
      'start': round(self.begin * horizon, 6),
    }

  def scaled(self, factor: float) -> 'LearningRate':
    """The same schedule, with all rates multiplied by `factor`."""
    return dataclasses.replace(self, base=self.base * factor)

  def __call__(
    self, epoch: jax.typing.ArrayLike, coefficients: Mapping[str, Any]
  ) -> jax.Array:
    """The rate at `epoch` of the stage, float32; fractions of epochs count.

    The `coefficients` may be traced: the compiled program is then the same for
    all schedules of this kind and all lengths of the stage.
    """
    c = coefficients
    epoch = jnp.asarray(epoch, jnp.float32)
    if self.schedule == 'cosine':
      position = jnp.clip((c['start'] + epoch) / c['horizon'], 0.0, 1.0)
      return c['base'] / 2 * (1 + jnp.cos(math.pi * position))
    drops = jnp.asarray(c['drops'] if self.schedule == 'steps' else ())
    return c['base'] * c['factor'] ** (epoch >= drops).sum()
