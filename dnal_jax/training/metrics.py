"""Metrics of an epoch: from sums over its steps to one row."""

from collections.abc import Mapping
from typing import Any

from dnal_jax.training.stages import Stage

Row = dict[str, Any]


def gate_counts(counts: Any) -> dict[str, int]:
  """[3] integers of `channel_gates.count_by_state`, by name."""
  names = ('low', 'undecided', 'high')
  return dict(zip(names, map(int, counts), strict=True))


def epoch_row(
  stage: Stage,
  *,
  epoch: int,
  epochs_done: int,
  sums: Mapping[str, float],
  steps: int,
  images: int,
  validation: Mapping[str, float],
  counts: Any,
  target: Mapping[str, float] | None = None,
) -> Row:
  """The row of metrics.jsonl for an epoch of `steps` steps and `images` images.

  `sums` are `RunState.sums` at the end of the epoch, `validation` is what
  `Evaluator` returns, `counts` is [3] int32 of `channel_gates.count_by_state`
  after the epoch, None where the stage does not search. In the row, losses are
  means per image in nats, top1 and top5 shares of 1; 'gate_sum' is the sum over
  all gates of sigmoid(s) at the last step. `target` is there in a search that
  has one: the cost of the soft gates over the limit of each kind.
  """
  row = {
    'stage': stage.name,
    'epoch': epoch,
    'epochs': stage.epochs,
    'epochs_done': epochs_done,
    'step': epochs_done * steps,
    'loss': sums['loss'] / images,
    'train_top1': sums['correct'] / images,
    'gate_sum': sums['gate_sum'],
    'validation_loss': validation['loss'],
    'validation_top1': validation['top1'],
    'validation_top5': validation['top5'],
    'images_per_second': images / sums['seconds'],
    'gates': None if counts is None else gate_counts(counts),
  }
  return row if target is None else {**row, 'target': dict(target)}
