"""What each stage of a run trains, how long, and what the gates do meanwhile.

A run is a list of stages; the published method is warm-up, search, fine-tune,
a baseline is one stage, a second search round a longer list. All stages share
one train step (`step`), to which a stage is data: what it trains and how is
compiled into the step; lambda, delta and the rates are given to it (`Numbers`),
so that other ones, as in a sweep, need no other program.
"""

from collections.abc import Iterable, Mapping
import dataclasses
import math
import re
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import optax

from dnal_jax import errors, gating


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


@dataclasses.dataclass(frozen=True)
class Group:
  """A set of leaves trained alike, by SGD with momentum."""

  match: str  # regex on a whole path: 'params/head/logits/kernel', 'gates/...'
  lr: LearningRate
  momentum: float = 0.9
  weight_decay: float = 0.0  # L2, added to the gradient as PyTorch's SGD does
  nesterov: bool = False

  def __post_init__(self):
    try:
      re.compile(self.match)
    except re.error as error:
      raise ValueError(
        f"match is '{self.match}', which is no regular expression ({error})"
      ) from error
    if not 0 <= self.momentum < 1:
      raise ValueError(f'momentum is {self.momentum}; it must be in [0, 1)')
    if self.weight_decay < 0:
      raise ValueError(
        f'weight_decay is {self.weight_decay}; it must not be negative'
      )


class Numbers(NamedTuple):
  """What a train step is given of a stage in one of its epochs."""

  delta: float | None  # None: the gates are open
  penalty: float
  rates: dict[str, dict[str, Any]]  # of groups, `LearningRate.numbers`


@dataclasses.dataclass(frozen=True)
class Stage:
  """One entry of the list; all that distinguishes warm-up from search."""

  name: str
  epochs: int
  train: Mapping[str, Group]  # what no group matches is frozen
  delta_end: float | None = None  # None: the gates are open
  penalty: float = 0.0  # lambda, of the sum of sigmoid(s) over all gates
  prune_below: float | None = None  # on entry, cut channels with gates below
  prune_multiple: int = 1  # of which the widths kept are made multiples
  label_smoothing: float = 0.0  # share of the target spread over all classes
  ema: float = 0.0  # decay of the average of weights that the stage hands on

  def __post_init__(self):
    for name, group in self.train.items():
      if group.lr.schedule == 'cosine':
        end = group.lr.horizon - group.lr.start
        if self.epochs > end:
          raise ValueError(
            f'epochs is {self.epochs}, but the learning rate of train.{name}'
            f' is 0 from epoch {end:g} on; set its lr.horizon to'
            f' {self.epochs + group.lr.start:g} or more'
          )
    cuts_only = self.prune_below is not None and self.delta_end is None
    least = 0 if cuts_only else 1
    if self.epochs < least:
      raise ValueError(
        f'epochs is {self.epochs}; it must be at least {least}. To leave the'
        " stage out, take its name out of 'order'"
      )
    if self.penalty < 0:
      raise ValueError(f'penalty is {self.penalty}; it must not be negative')
    for key in ('label_smoothing', 'ema'):
      if not 0 <= getattr(self, key) < 1:
        raise ValueError(f'{key} is {getattr(self, key)}; it must be in [0, 1)')
    if self.delta_end is not None and self.delta_end <= 1:
      raise ValueError(f'delta_end is {self.delta_end}; it must be above 1')
    if self.prune_multiple < 1:
      raise ValueError(
        f'prune_multiple is {self.prune_multiple}; it must be 1 or more'
      )
    if self.prune_below is not None and not 0 < self.prune_below < 1:
      raise ValueError(
        f'prune_below is {self.prune_below}; it must be between 0 and 1'
      )

  def numbers(self, epoch: int) -> Numbers:
    """Those of an epoch, the first being 0."""
    delta = None
    if self.delta_end is not None:
      delta = gating.delta(epoch, self.epochs, self.delta_end)
    rates = {name: group.lr.numbers for name, group in self.train.items()}
    return Numbers(delta, self.penalty, rates)

  def slower(self, factor: float) -> 'Stage':
    """The stage with learning rates times `factor`."""
    train = {
      name: dataclasses.replace(
        group,
        lr=dataclasses.replace(group.lr, base=group.lr.base * factor),
      )
      for name, group in self.train.items()
    }
    return dataclasses.replace(self, train=train)

  def groups(self, paths: Iterable[str]) -> dict[str, str]:
    """{path: group} of what trains in this stage.

    Raises:
      UserError: a pattern matches nothing, or two match the same path.
    """
    paths = list(paths)
    owner: dict[str, str] = {}
    for name, group in self.train.items():
      matched = [p for p in paths if re.fullmatch(group.match, p)]
      if not matched:
        raise errors.UserError(
          f"stage '{self.name}': pattern '{group.match}' of group '{name}'"
          f' matches nothing; there are {_examples(paths)}'
        )
      for path in matched:
        if path in owner:
          raise errors.UserError(
            f"stage '{self.name}': '{path}' is in two groups, '{owner[path]}'"
            f" and '{name}'; make their patterns exclude each other"
          )
        owner[path] = name
    return owner

  def optimizer(
    self,
    paths: Iterable[str],
    steps_per_epoch: int,
    rates: Mapping[str, Mapping[str, Any]],
  ) -> optax.GradientTransformation:
    """Optimizer of {path: leaf}, over the leaves that this stage trains, with
    learning rates by the numbers of `rates`."""
    return optax.partition(
      {
        name: _sgd(group, steps_per_epoch, rates[name])
        for name, group in self.train.items()
      },
      self.groups(paths),
    )


def validate(stages: tuple[Stage, ...]) -> None:
  """Checks what no stage can check alone.

  Raises:
    UserError: a stage is to prune and nothing was searched before it.
  """
  searched = False
  for stage in stages:
    if stage.prune_below is not None and not searched:
      raise errors.UserError(
        f"stage '{stage.name}' prunes, but no stage before it searches: put a"
        ' stage with delta_end before it, or drop its prune_below'
      )
    searched = stage.delta_end is not None or (
      searched and stage.prune_below is None
    )


def _sgd(
  group: Group, steps_per_epoch: int, numbers: Mapping[str, Any]
) -> optax.GradientTransformation:
  return optax.chain(
    optax.add_decayed_weights(group.weight_decay),
    optax.sgd(
      lambda step: group.lr(step / steps_per_epoch, numbers),
      group.momentum,
      group.nesterov,
    ),
  )


def _examples(paths: list[str]) -> str:
  """A few paths that show what there is to match, the classifier's first."""
  first = [p for p in paths if '/head/' in p]
  rest = [p for p in paths if p not in first]
  return ', '.join(f"'{p}'" for p in (first + rest)[:6]) + ', ...'
