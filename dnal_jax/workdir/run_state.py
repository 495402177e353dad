"""Where a run stands, and its figures so far: what is saved with its arrays."""

from collections.abc import Mapping, Sequence
import dataclasses
from typing import Any

from dnal_jax import errors

# The points at which accuracy on validation is kept (docs/run-folder.md).
POINTS = ('warmup', 'gated', 'pruned', 'compact', 'final')


@dataclasses.dataclass(frozen=True)
class Cursor:
  """How much of a run is done."""

  stage: int = 0  # number of the stage under way, from 0
  epoch: int = 0  # epochs of that stage that are done
  step: int = 0  # steps of the next epoch that are done


@dataclasses.dataclass(frozen=True)
class StageResult:
  """What result.json reports of a stage."""

  name: str
  epochs: int
  steps: int  # in all epochs
  seconds: float = 0.0  # evaluation included
  train_loss: float | None = None  # of its last epoch, mean per image in nats


@dataclasses.dataclass(frozen=True)
class RunResult:
  """The figures so far; one that was not measured is None."""

  stages: tuple[StageResult, ...] = ()  # those that have begun
  top1: Mapping[str, float | None] = dataclasses.field(
    default_factory=lambda: dict.fromkeys(POINTS)
  )
  # Of the logits of the pruned and the masked model.
  compact_max_abs_diff: float | None = None
  # The checkpoint of the epoch that was best on validation, of the last stage
  # that has one: {number, stage, epoch (from 1), validation_top1}.
  best: Mapping[str, Any] | None = None
  rollbacks: int = 0  # restarts after a loss or gradient that was not finite


@dataclasses.dataclass(frozen=True)
class RunState:
  """All of a run but its arrays. Changes by `replace` only; JSON on disk."""

  cursor: Cursor = Cursor()
  result: RunResult = RunResult()
  # Over the steps of the epoch that are done: loss, correct, seconds; and the
  # last step's gate_sum.
  sums: Mapping[str, float] = dataclasses.field(default_factory=dict)
  # Gate path -> channels left; {} before the first pruning.
  keep: Mapping[str, tuple[int, ...]] = dataclasses.field(default_factory=dict)
  images: int = 0  # to train on
  lr_factor: float = 1.0  # of this stage's learning rates, after restarts
  # Gate path -> epochs running at whose end all of its channels were closed
  # while nothing bypasses it (`training.prune.closed_layers`).
  closed_epochs: Mapping[str, int] = dataclasses.field(default_factory=dict)
  # For each process, {split: records that it found to be undecodable}. One may
  # be broken in some crops only, so what another process knows would change
  # this one's batches.
  broken: Sequence[Mapping[str, Sequence[int]]] = ()

  # Where it stands.

  @property
  def epochs_done(self) -> int:
    """In all stages."""
    before = self.result.stages[: self.cursor.stage]
    return sum(stage.epochs for stage in before) + self.cursor.epoch

  @property
  def stage_steps_done(self) -> int:
    """In the stage under way."""
    stage = self.result.stages[-1]
    in_epochs = stage.steps * self.cursor.epoch // max(stage.epochs, 1)
    return in_epochs + self.cursor.step

  @property
  def stage_first_step(self) -> int:
    """Steps that the stages before this one took."""
    return sum(s.steps for s in self.result.stages[: self.cursor.stage])

  @property
  def steps_done(self) -> int:
    """In all stages."""
    return self.stage_first_step + self.stage_steps_done

  @property
  def steps_of_stages(self) -> int:
    """In all stages that have begun, at the end of the last of them."""
    return sum(stage.steps for stage in self.result.stages)

  @property
  def number(self) -> int:
    """Of its checkpoint: the beginning of a stage has one of its own, as each
    of the stage's steps has."""
    return self.steps_done + self.cursor.stage

  def describe(self) -> str:
    """The stage and how much of it is done, for messages."""
    stage = self.result.stages[-1]
    done = f"'{stage.name}', {self.cursor.epoch} of {stage.epochs}"
    if self.cursor.step:
      return f'{done} epochs and {self.cursor.step} steps done'
    return f'{done} epochs done'

  def broken_records(
    self, process: int, processes: int
  ) -> dict[str, list[int]]:
    """What that process knew to be broken; with another number of processes
    than before, what any of them knew."""
    if len(self.broken) == processes:
      return {split: list(n) for split, n in self.broken[process].items()}
    return {
      split: sorted({n for found in self.broken for n in found[split]})
      for split in (self.broken[0] if self.broken else ())
    }

  def check_data(self, title: str, images: int) -> None:
    """Raises UserError if the data has changed since the run began."""
    if images != self.images:
      raise errors.UserError(
        f"'{title}' had {self.images} images to train on when this run began,"
        f' now it has {images}; bring it back, or choose another --workdir'
      )

  # How it goes on.

  def begin_stage(self, name: str, epochs: int, steps: int) -> 'RunState':
    """At the beginning of the run's next stage, or of its first one."""
    before = self.result.stages
    stages = (*before, StageResult(name, epochs, steps))
    return dataclasses.replace(
      self,
      cursor=Cursor(stage=len(before)),
      result=dataclasses.replace(self.result, stages=stages),
      lr_factor=1.0,
      closed_epochs={},
    )

  def add_steps(
    self, metrics: Sequence[Mapping[str, Any]], seconds: float
  ) -> 'RunState':
    """After steps of the epoch whose metrics these are. They are added one by
    one, so that the sums are the same wherever a run was interrupted."""
    sums = {'loss': 0.0, 'correct': 0.0, 'seconds': 0.0, **self.sums}
    for of_step in metrics:
      sums['loss'] += float(of_step['loss'])
      sums['correct'] += float(of_step['correct'])
    sums['seconds'] += seconds
    sums['gate_sum'] = float(metrics[-1]['gate_sum'])
    step = self.cursor.step + len(metrics)
    cursor = dataclasses.replace(self.cursor, step=step)
    return dataclasses.replace(self, cursor=cursor, sums=sums)

  def end_epoch(
    self, loss: float, seconds: float, point: str | None, top1: float
  ) -> 'RunState':
    """At the end of the epoch whose last step was the last one done.

    `loss` is its mean per image in nats, `seconds` include its evaluation,
    `top1` is on validation, and `point` the one of POINTS that it is, if any.
    """
    cursor = Cursor(self.cursor.stage, self.cursor.epoch + 1)
    after = dataclasses.replace(self, cursor=cursor, sums={})
    *before, stage = self.result.stages
    stage = dataclasses.replace(
      stage, train_loss=loss, seconds=stage.seconds + seconds
    )
    best = self.result.best
    # Compared within a stage, since a pruned network cannot be held against a
    # full one; of equals the later, which has trained longer.
    if best is None or cursor.epoch == 1 or top1 >= best['validation_top1']:
      best = {
        'number': after.number,
        'stage': stage.name,
        'epoch': cursor.epoch,
        'validation_top1': top1,
      }
    points = {} if point is None else {point: top1}
    result = dataclasses.replace(
      self.result,
      stages=(*before, stage),
      top1={**self.result.top1, **points},
      best=best,
    )
    return dataclasses.replace(after, result=result)

  def count_closed(self, closed: Sequence[str]) -> 'RunState':
    """At the end of an epoch, after which these gates are closed."""
    epochs = {gate: self.closed_epochs.get(gate, 0) + 1 for gate in closed}
    return dataclasses.replace(self, closed_epochs=epochs)

  def prune(
    self,
    keep: Mapping[str, tuple[int, ...]],
    masked_top1: float,
    pruned_top1: float,
    max_abs_diff: float,
  ) -> 'RunState':
    """After pruning to the channels `keep`, and what the equivalence check
    measured on validation."""
    top1 = {'pruned': masked_top1, 'compact': pruned_top1}
    result = dataclasses.replace(
      self.result,
      top1={**self.result.top1, **top1},
      compact_max_abs_diff=max_abs_diff,
    )
    return dataclasses.replace(self, keep=dict(keep), result=result)

  def restart_after(self, failed: 'RunState') -> 'RunState':
    """This earlier state, with half the learning rates by which the run came to
    `failed`, where a loss or gradient was not finite."""
    rollbacks = failed.result.rollbacks + 1
    return dataclasses.replace(
      self,
      result=dataclasses.replace(self.result, rollbacks=rollbacks),
      lr_factor=failed.lr_factor / 2,
    )

  # On disk. The keys are those of the first version, which had one flat record.

  def to_json(self) -> dict[str, Any]:
    """The value that `from_json` reads, of dicts, lists and numbers."""
    result = dataclasses.asdict(self.result)
    rest = dataclasses.asdict(self)
    cursor = rest.pop('cursor')
    del rest['result']
    return {**cursor, **rest, **result}

  @classmethod
  def from_json(cls, value: Mapping[str, Any]) -> 'RunState':
    """The state that `to_json` wrote, whose digest was verified."""

    def fields(kind: Any) -> dict[str, Any]:
      names = (field.name for field in dataclasses.fields(kind))
      return {name: value[name] for name in names if name in value}

    stages = tuple(StageResult(**stage) for stage in value['stages'])
    result = RunResult(**{**fields(RunResult), 'stages': stages})
    keep = {gate: tuple(ids) for gate, ids in value['keep'].items()}
    rest = {**fields(cls), 'keep': keep}
    return cls(**{**rest, 'cursor': Cursor(**fields(Cursor)), 'result': result})
