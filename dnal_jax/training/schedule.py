"""Learning-rate schedules."""

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
  """Learning rate at `epoch` of a stage; fractions of epochs count.

      constant: base
      steps:    base * factor ** (number of drops <= epoch)
      cosine:   base / 2 * (1 + cos(pi * (start + epoch) / horizon))

  `drops`, `start` and `horizon` are in epochs. A warm-up of 80 epochs with
  horizon 160 ends at half of base; a fine-tuning with start 30 and horizon 120
  begins a quarter down the curve (settings of the authors' code, see configs).
  """

  base: Annotated[float, Range(above=0)]
  schedule: Literal['constant', 'steps', 'cosine'] = 'constant'
  drops: tuple[float, ...] = ()
  factor: float = 0.1
  horizon: float = 0.0
  start: float = 0.0

  def __post_init__(self):
    limits.check(self)
    if self.schedule == 'cosine' and self.horizon <= 0:
      raise ValueError(
        f'horizon is {self.horizon}; cosine needs the length of its half'
        ' period in epochs'
      )

  @property
  def coefficients(self) -> dict[str, Any]:
    """The numbers of the formula by name; a pytree whose leaves are floats."""
    names = ('base', 'drops', 'factor', 'horizon', 'start')
    return {name: getattr(self, name) for name in names}

  def scaled(self, factor: float) -> 'LearningRate':
    """The same schedule, with all rates multiplied by `factor`."""
    return dataclasses.replace(self, base=self.base * factor)

  def __call__(
    self,
    epoch: jax.typing.ArrayLike,
    coefficients: Mapping[str, Any] | None = None,
  ) -> jax.Array:
    """The rate at `epoch`, float32.

    With `coefficients`, which may be traced, those replace its own: the
    compiled program is then the same for all schedules of this kind.
    """
    c = self.coefficients if coefficients is None else coefficients
    epoch = jnp.asarray(epoch, jnp.float32)
    if self.schedule == 'cosine':
      position = jnp.clip((c['start'] + epoch) / c['horizon'], 0.0, 1.0)
      return c['base'] / 2 * (1 + jnp.cos(math.pi * position))
    drops = jnp.asarray(c['drops'] if self.schedule == 'steps' else ())
    return c['base'] * c['factor'] ** (epoch >= drops).sum()
