"""Progress on a terminal: a bar for the stage, and a line for each epoch.

Where standard error is no terminal, only the lines are printed.
"""

from collections.abc import Mapping
from typing import Any

import tqdm

from dnal_jax.training import metrics as epoch_metrics
from dnal_jax.training.hooks import Hook
from dnal_jax.training.stages import Stage

_EPOCH = (
  '{stage} {epoch}/{epochs}: loss {loss:.4f}, train {train_top1:.2%},'
  ' validation {validation_top1:.2%}, {images_per_second:.0f} images/s'
)
# Of the first epoch since the step was compiled.
_COMPILED = ' (compiling included)'
_GATES = ', gates <0.1: {low}, undecided: {undecided}, >0.9: {high}'


class ProgressBar(Hook):
  """A bar over the images of a stage, with the metrics of the last step."""

  def __init__(self, batch_size: int, steps_per_epoch: int):
    self._batch_size = batch_size
    self._steps_per_epoch = steps_per_epoch

  def begin_stage(self, index: int, stage: Stage, steps_done: int) -> None:
    del index
    self._stage = stage
    self._compiled = False
    show(
      f'{stage.name}: {stage.epochs} epochs of {self._steps_per_epoch} steps;'
      ' compiling the step'
    )
    self._bar = tqdm.tqdm(
      total=stage.epochs * self._steps_per_epoch * self._batch_size,
      initial=steps_done * self._batch_size,
      desc=self._title(steps_done),
      unit=' images',
      unit_scale=True,
      leave=False,
      disable=None,  # where there is no terminal
      mininterval=0.2,
    )

  def on_steps(self, steps_done: int, metrics: Mapping[str, Any]) -> None:
    self._bar.set_description(self._title(steps_done - 1), refresh=False)
    shown = {
      'loss': f'{metrics["loss"] / self._batch_size:.3f}',
      'accuracy': f'{metrics["correct"] / self._batch_size:.1%}',
    }
    if 'gates' in metrics:
      shown['gates <0.1/undecided/>0.9'] = '/'.join(
        str(n) for n in epoch_metrics.gate_counts(metrics['gates']).values()
      )
    self._bar.set_postfix(shown, refresh=False)
    self._bar.update(steps_done * self._batch_size - self._bar.n)

  def end_epoch(self, row: Mapping[str, Any], gates: Mapping[str, Any]) -> None:
    del gates
    show(epoch_line(row, compiling=not self._compiled))
    self._compiled = True

  def end_stage(self) -> None:
    self._bar.close()

  def _title(self, step: int) -> str:
    epoch = min(step // self._steps_per_epoch + 1, self._stage.epochs)
    return f'{self._stage.name} {epoch}/{self._stage.epochs}'


def show(line: str) -> None:
  """Prints a line above the bar, if there is one."""
  tqdm.tqdm.write(line)


def epoch_line(row: Mapping[str, Any], compiling: bool = False) -> str:
  """One line about a row of metrics, of an epoch with or without compiling."""
  line = _EPOCH.format(**row) + _COMPILED * compiling
  if row['gates']:
    line += _GATES.format(**row['gates'])
  for kind, share in row.get('target', {}).items():
    line += f', {kind} {share:.2f} of the target'
  return line
