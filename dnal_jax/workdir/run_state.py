"""Where a run stands, and the figures so far: what is saved with its arrays."""

import dataclasses
from typing import Any

from dnal_jax import errors


@dataclasses.dataclass
class RunState:
  """Where a run stands, and the figures so far. JSON on disk."""

  stage: int = 0
  epoch: int = 0  # of that stage, done
  step: int = 0  # of the epoch, done
  sums: dict[str, float] = dataclasses.field(default_factory=dict)  # over them
  keep: dict[str, tuple[int, ...]] = dataclasses.field(default_factory=dict)
  stages: list[dict[str, Any]] = dataclasses.field(default_factory=list)
  top1: dict[str, float | None] = dataclasses.field(
    default_factory=lambda: dict.fromkeys(
      ('warmup', 'gated', 'pruned', 'compact', 'final')
    )
  )
  compact_max_abs_diff: float | None = None
  # Of the last stage that has one: the checkpoint of the epoch that was best
  # on validation, as {number, stage, epoch (from 1), validation_top1}.
  best: dict[str, Any] | None = None
  images: int = 0  # to train on
  rollbacks: int = 0  # times the run went back since numbers were not finite
  lr_factor: float = 1.0  # of this stage's learning rates, because of that
  # Of each process: by split, the records that it has found to be broken. One
  # may fail in some crops only, so another's knowledge would change a batch.
  broken: list[dict[str, list[int]]] = dataclasses.field(default_factory=list)

  @property
  def epochs_done(self) -> int:
    """In all stages."""
    before = self.stages[: self.stage]
    return sum(stage['epochs'] for stage in before) + self.epoch

  @property
  def steps_of_stage(self) -> int:
    """Done in the stage that it is in."""
    stage = self.stages[-1]
    of_epochs = stage['steps'] * self.epoch // max(stage['epochs'], 1)
    return of_epochs + self.step

  @property
  def steps_done(self) -> int:
    """In all stages."""
    before = self.stages[: self.stage]
    return sum(stage['steps'] for stage in before) + self.steps_of_stage

  @property
  def number(self) -> int:
    """Of its checkpoint: the beginning of a stage has one of its own, as each
    of the stage's steps has."""
    return self.steps_done + self.stage

  def next_stage(self) -> None:
    """At the beginning of the next one; `begin_stage` follows."""
    self.stage, self.epoch, self.lr_factor = self.stage + 1, 0, 1.0

  def begin_stage(self, name: str, epochs: int, steps: int) -> None:
    """Adds the entry of a stage to the result; an epoch fills it in."""
    self.stages.append(
      {
        'name': name,
        'epochs': epochs,
        'steps': steps,
        'seconds': 0.0,
        'train_loss': None,
      }
    )

  def add(self, steps: list[dict[str, Any]], seconds: float) -> None:
    """Counts in the metrics of steps that were done, one after the other, so
    that the sums are the same wherever a run was interrupted."""
    sums = self.sums or {'loss': 0.0, 'correct': 0.0, 'seconds': 0.0}
    for metrics in steps:
      sums['loss'] += float(metrics['loss'])
      sums['correct'] += float(metrics['correct'])
    sums['seconds'] += seconds
    sums['gate_sum'] = float(steps[-1]['gate_sum'])
    self.sums = sums
    self.step += len(steps)

  def slower_than(self, before: 'RunState') -> float:
    """Halves the learning rates with which a run got to `before`, from where
    it went back to here; returns the factor."""
    self.rollbacks, self.lr_factor = before.rollbacks + 1, before.lr_factor / 2
    return self.lr_factor

  def end_epoch(self) -> dict[str, float]:
    """The sums over the epoch that is done; the next begins."""
    sums, self.sums = self.sums, {}
    self.epoch, self.step = self.epoch + 1, 0
    return sums

  def check(self, title: str, images: int) -> None:
    """Raises UserError if the data has changed since the run began."""
    if images != self.images:
      raise errors.UserError(
        f"'{title}' had {self.images} images to train on when this run began,"
        f' now it has {images}; bring it back, or choose another --workdir'
      )

  def broken_for(self, process: int, processes: int) -> dict[str, list[int]]:
    """What that process knew; of another number of them, what any knew."""
    if len(self.broken) == processes:
      return self.broken[process]
    return {
      split: sorted({n for found in self.broken for n in found[split]})
      for split in (self.broken[0] if self.broken else ())
    }

  def record(
    self, loss: float, seconds: float, point: str | None, top1: float
  ) -> None:
    """What an epoch that is done leaves in the result: `point` is a key of
    `top1`, which is of validation."""
    self.stages[-1]['train_loss'] = loss
    self.stages[-1]['seconds'] += seconds
    if point is not None:
      self.top1[point] = top1
    # Of a stage, as a network that is cut cannot be held against a whole one;
    # of equals the later, which has trained longer.
    if (
      self.best is None
      or self.epoch == 1
      or top1 >= self.best['validation_top1']
    ):
      self.best = {
        'number': self.number,
        'stage': self.stages[-1]['name'],
        'epoch': self.epoch,
        'validation_top1': top1,
      }

  def told(self) -> str:
    """Where in the stage, for people."""
    of = f'{self.epoch} of {self.stages[-1]["epochs"]} epochs'
    return f'{of} and {self.step} steps done' if self.step else f'{of} done'

  @classmethod
  def from_json(cls, value: dict[str, Any]) -> 'RunState':
    keep = {gate: tuple(ids) for gate, ids in value['keep'].items()}
    return cls(**{**value, 'keep': keep})
