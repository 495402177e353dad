"""The stages of a run: what each one trains, for how long, and its gates.

A run is a list of stages. The published method is warm-up, search, fine-tune;
a baseline is one stage; a second round of search is a longer list. All stages
share one train step (`step.py`). What a stage trains and how is compiled into
that step; lambda, delta and the learning rates are its arguments
(`StepHyperparams`), so that a sweep over them compiles one program.
"""

from collections.abc import Mapping
import dataclasses
from typing import Annotated, Any, Literal, NamedTuple

from dnal_jax import errors, limits
from dnal_jax.limits import Range
from dnal_jax.search import channel_gates
from dnal_jax.search.budget import Target
from dnal_jax.search.ranking import Ranking
from dnal_jax.training.optimizer import ParamGroup

WARMUP = 'warmup'  # the teacher that the run itself has trained


class StepHyperparams(NamedTuple):
  """The numbers that a train step takes as arguments, in one epoch."""

  delta: float | None  # None: the gates are open
  penalty: float  # lambda
  rates: dict[str, dict[str, Any]]  # {group: `LearningRate.coefficients`}
  # Of a stage that changes by the step (`Stage.by_step`), else None.
  epochs: int | None = None
  delta_end: float | None = None


@dataclasses.dataclass(frozen=True)
class Distill:
  """A second loss, by the logits of a teacher (ours): (1 - weight) * the
  cross-entropy + weight * `losses.distillation`. No teacher: no second loss."""

  # 'warmup', what the run's own warm-up has trained; or the folder of a run.
  teacher: str | None = None
  weight: Annotated[float, Range(above=0, max=1)] = 0.5
  temperature: Annotated[float, Range(above=0)] = 2.0

  def __post_init__(self):
    limits.check(self)


@dataclasses.dataclass(frozen=True)
class Stage:
  """A stage, as data; all that distinguishes a warm-up from a search."""

  name: str
  epochs: int
  train: Mapping[str, ParamGroup]  # leaves that no group matches are frozen
  # The steepness of the gates' sigmoid in the last epoch; None: gates are open.
  delta_end: Annotated[float | None, Range(above=1)] = None
  # lambda, the weight of the sum of sigmoid(gate logit) over all gates; None:
  # the stage has a target.
  penalty: Annotated[float | None, Range(min=0)] = 0.0
  # On entry, channels whose gates are not above it are pruned.
  gate_threshold: Annotated[float | None, Range(above=0, below=1)] = None
  # What channels are ranked by that are pruned on entry: gates of the search
  # before, or without a search (ours; `search/ranking.py`).
  prune_by: Ranking = 'gates'
  # What the pruned network may cost; for gates without it, the target of their
  # search (ours).
  prune_to: Target = dataclasses.field(default_factory=Target)
  # Pruned widths are rounded up to multiples of it.
  channel_multiple: Annotated[int, Range(min=1)] = 1
  # Share of the target that is spread over all classes.
  label_smoothing: Annotated[float, Range(min=0, below=1)] = 0.0
  # Decay of the average of the weights, which is the stage's result; 0: none.
  ema: Annotated[float, Range(min=0, below=1)] = 0.0
  # Batches of training images by which BatchNorm's running averages are renewed
  # after pruning (ours).
  recalibrate_batches: Annotated[int, Range(min=0)] = 0
  # Whether delta grows from epoch to epoch, as published, or from step to step
  # (ours), by the same values at the end of each epoch.
  delta_by: Literal['epoch', 'step'] = 'epoch'
  # In place of the penalty: what the network may cost in the end (ours).
  target: Target = dataclasses.field(default_factory=Target)

  # Whether a teacher has a part in the loss (ours).
  distill: Distill = dataclasses.field(default_factory=Distill)

  def __post_init__(self):
    limits.check(self)
    if self.target and self.penalty:
      raise ValueError(
        f'penalty is {self.penalty:g} and target is {self.target}; a search has'
        ' one of them, and a baseline none: leave the other out. The variant'
        " ':target' of a config has no penalty; a config file of your own"
        " passes it on: read_config(f'NAME:{variant}')"
      )
    if self.searches and self.penalty is None and not self.target:
      raise ValueError(
        'target has no value, and there is no penalty either: set, for half of'
        ' the multiply-adds, --config.target.macs=0.5, or target.params'
      )
    if self.target and not self.searches:
      raise ValueError(
        f'target is {self.target}, but the stage does not search: set delta_end'
      )
    if bool(self.prune_to) < (self.prune_by != 'gates'):
      raise ValueError(
        f"prune_by is '{self.prune_by}', and prune_to has no value: set, for"
        ' half of the multiply-adds, prune_to.macs to 0.5'
      )
    if self.prune_to and not self.prunes:
      raise ValueError(
        f'prune_to is {self.prune_to}, but the stage does not prune: set'
        ' gate_threshold or prune_by'
      )
    prunes_only = self.prunes and not self.searches
    least = 0 if prunes_only else 1
    if self.epochs < least:
      raise ValueError(
        f'epochs is {self.epochs}; it must be at least {least}. To leave the'
        " stage out, take its name out of 'order'"
      )

  @property
  def prunes(self) -> bool:
    """Whether channels are pruned on entry."""
    return self.gate_threshold is not None or self.prune_by != 'gates'

  @property
  def searches(self) -> bool:
    """Whether gates are soft, so that they can be trained."""
    return self.delta_end is not None

  @property
  def by_step(self) -> bool:
    """Whether more than learning rates changes from step to step."""
    return bool(self.target) or (self.searches and self.delta_by == 'step')

  def hyperparams(self, epoch: int) -> StepHyperparams:
    """The hyperparameters of an epoch, counted from 0."""
    delta = None
    if self.delta_end is not None:
      delta = channel_gates.delta_schedule(epoch, self.epochs, self.delta_end)
    rates = {
      name: group.lr.coefficients(self.epochs)
      for name, group in self.train.items()
    }
    by_step = (self.epochs, self.delta_end) if self.by_step else (None, None)
    return StepHyperparams(delta, self.penalty or 0.0, rates, *by_step)

  def resized(self, factor: float) -> 'Stage':
    """The same stage with its epochs multiplied by `factor`, at least one."""
    if factor == 1 or not self.epochs:
      return self
    epochs = max(1, round(self.epochs * factor))
    return dataclasses.replace(self, epochs=epochs)

  def scaled(self, factor: float) -> 'Stage':
    """The same stage, with all learning rates multiplied by `factor`."""
    train = {
      name: dataclasses.replace(group, lr=group.lr.scaled(factor))
      for name, group in self.train.items()
    }
    return dataclasses.replace(self, train=train)


def validate(stages: tuple[Stage, ...]) -> None:
  """Checks what no stage can check alone.

  Raises:
    UserError: a stage prunes by gates, and no stage before it searched; the
      first stage prunes by weights, which nothing has trained; or a stage is to
      learn from a warm-up that is not before it.
  """
  searched = False
  for stage in stages:
    if stage.prunes and stage.prune_by == 'gates' and not searched:
      raise errors.UserError(
        f"stage '{stage.name}' prunes, but no stage before it searches: put a"
        ' stage with delta_end before it, or drop its gate_threshold'
      )
    searched = stage.searches or (searched and not stage.prunes)
  for stage in stages[: after_warmup(stages)]:
    if stage.distill.teacher == WARMUP:
      raise errors.UserError(
        f"stage '{stage.name}' has the teacher '{WARMUP}', but is not behind a"
        ' warm-up; name the folder of a run, or put a search between'
      )
  first = stages[0]
  if first.prune_by not in ('gates', 'uniform'):
    raise errors.UserError(
      f"stage '{first.name}' prunes by '{first.prune_by}', but no stage before"
      " it trains weights; put one before it, or prune by 'uniform'"
    )


def after_warmup(stages: tuple[Stage, ...]) -> int:
  """The number of the first stage that searches, or prunes what was trained;
  that of all stages if none does."""
  for index, stage in enumerate(stages):
    if stage.searches or (stage.prunes and index):
      return index
  return len(stages)


class Cut(NamedTuple):
  """What is pruned on entry of a stage."""

  search: Stage | None  # the last one before it, if its gates decide
  by: Ranking
  target: Target  # what the pruned network may cost
  threshold: float | None  # without a target, gates above it are kept
  multiple: int  # of which the widths kept are made multiples
  stages_ahead: int  # 1: on entry of the next stage

  @property
  def searched(self) -> Stage:
    """The search whose gates decide."""
    assert self.search is not None, self.by
    return self.search


def next_cut(stages: tuple[Stage, ...], here: int) -> Cut | None:
  """The next pruning behind stage number `here` for which all is there: gates
  that were searched up to it, or weights; None if there is none."""
  searches = [s for s in stages[: here + 1] if s.searches]
  for ahead, stage in enumerate(stages[here + 1 :], 1):
    by_gates = stage.prune_by == 'gates'
    if stage.prunes and (searches or not by_gates):
      search = searches[-1] if by_gates else None
      target = stage.prune_to or (search.target if search else Target())
      return Cut(
        *(search, stage.prune_by, target, stage.gate_threshold),
        multiple=stage.channel_multiple,
        stages_ahead=ahead,
      )
  return None
