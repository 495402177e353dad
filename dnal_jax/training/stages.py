"""What each stage of a run trains, for how long, and what the gates do.

A run is a list of stages. The published method is warm-up, search, fine-tune;
a baseline is one stage; a second search round is a longer list. All stages
share one train step (`step.py`), to which a stage is data: what it trains and
how is compiled into the step; lambda, delta and the learning rates are
arguments of it (`StepHyperparams`), so that other values, as in a sweep, need
no other program.
"""

from collections.abc import Iterable, Mapping
import dataclasses
import re
from typing import Any, NamedTuple

import optax

from dnal_jax import errors
from dnal_jax.search import channel_gates
from dnal_jax.training.optimizer import ParamGroup, sgd


class StepHyperparams(NamedTuple):
  """What a train step is given of a stage in one of its epochs."""

  delta: float | None  # None: the gates are open
  penalty: float
  rates: dict[str, dict[str, Any]]  # of groups, `LearningRate.numbers`


@dataclasses.dataclass(frozen=True)
class Stage:
  """One entry of the list; all that distinguishes warm-up from search."""

  name: str
  epochs: int
  train: Mapping[str, ParamGroup]  # what no group matches is frozen
  delta_end: float | None = None  # None: the gates are open
  penalty: float = 0.0  # lambda, of the sum of sigmoid(s) over all gates
  gate_threshold: float | None = None  # on entry, cut channels with gates below
  channel_multiple: int = 1  # of which the widths kept are made multiples
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
    cuts_only = self.gate_threshold is not None and self.delta_end is None
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
    if self.channel_multiple < 1:
      raise ValueError(
        f'channel_multiple is {self.channel_multiple}; it must be 1 or more'
      )
    if self.gate_threshold is not None and not 0 < self.gate_threshold < 1:
      raise ValueError(
        f'gate_threshold is {self.gate_threshold}; it must be between 0 and 1'
      )

  def hyperparams(self, epoch: int) -> StepHyperparams:
    """Those of an epoch, the first being 0."""
    delta = None
    if self.delta_end is not None:
      delta = channel_gates.delta_schedule(epoch, self.epochs, self.delta_end)
    rates = {name: group.lr.numbers for name, group in self.train.items()}
    return StepHyperparams(delta, self.penalty, rates)

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
        name: sgd(group, steps_per_epoch, rates[name])
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
    if stage.gate_threshold is not None and not searched:
      raise errors.UserError(
        f"stage '{stage.name}' prunes, but no stage before it searches: put a"
        ' stage with delta_end before it, or drop its gate_threshold'
      )
    searched = stage.delta_end is not None or (
      searched and stage.gate_threshold is None
    )


def _examples(paths: list[str]) -> str:
  """A few paths that show what there is to match, the classifier's first."""
  first = [p for p in paths if '/head/' in p]
  rest = [p for p in paths if p not in first]
  return ', '.join(f"'{p}'" for p in (first + rest)[:6]) + ', ...'
