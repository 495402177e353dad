"""metrics.jsonl, a row for each epoch, and the same for TensorBoard."""

from collections.abc import Mapping
import importlib.util
import json
import os
import pathlib
from typing import Any

import numpy as np

from dnal_jax import errors
from dnal_jax.training import progress_bar
from dnal_jax.training.stages import Stage
from dnal_jax.workdir.json_files import short_repr

Row = dict[str, Any]

_EPOCH = (
  '{stage} {epoch}/{epochs}: loss {loss:.4f}, train {train_top1:.2%},'
  ' validation {validation_top1:.2%}, {images_per_second:.0f} images/s'
)

_GATES = ', gates <0.1: {low}, undecided: {undecided}, >0.9: {high}'


class Metrics:
  """metrics.jsonl, one row an epoch, and TensorBoard where clu imports.

  On resuming, rows of epochs that will be run again are dropped first (events
  are not: TensorBoard shows such an epoch twice).
  """

  def __init__(self, workdir: pathlib.Path, epochs_done: int, events: bool):
    self._path = workdir / 'metrics.jsonl'
    kept = [line for line, done in self._read() if done <= epochs_done]
    part = self._path.with_name(f'{self._path.name}.part')
    part.write_bytes(b''.join(line + b'\n' for line in kept))
    part.replace(self._path)
    self._events = _event_writer(workdir) if events else None

  def _read(self) -> list[tuple[bytes, int]]:
    """The lines and their epochs; a last line that a kill has cut short is not
    one."""
    if not self._path.exists():
      return []
    rows = []
    for i, line in enumerate(self._path.read_bytes().split(b'\n')[:-1], 1):
      try:
        done = json.loads(line)['epochs_done']
        if type(done) is not int:
          raise TypeError(f'epochs_done is {short_repr(done)}')
        rows.append((line, done))
      except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise errors.UserError(
          f"'{self._path}', line {i} is damaged ({error!r}); delete the line"
        ) from error
    return rows

  def write(self, row: Row, gates: Mapping[str, Any]) -> None:
    """Appends a row; `gates` {path: values} become histograms."""
    with self._path.open('a') as file:
      file.write(json.dumps(row) + '\n')
    if self._events is None:
      return
    scalars = {
      f'{row["stage"]}/{key}': value
      for key, value in row.items()
      if isinstance(value, float)
    }
    self._events.write_scalars(row['step'], scalars)
    histograms = {f'gates/{path}': np.asarray(g) for path, g in gates.items()}
    if histograms:
      self._events.write_histograms(row['step'], histograms)
    self._events.flush()


def epoch_row(
  stage: Stage,
  epoch: int,
  sums: Mapping[str, float],
  *,
  epochs_done: int,
  steps: int,
  images: int,
  validation: Mapping[str, float],
  census: Any,
) -> Row:
  """The row of metrics.jsonl for an epoch of so many steps and images, from
  the sums over its steps (`RunState.add`).

  Losses are means per image in nats, top1 and top5 shares of 1; 'gate_sum' is
  the sum over all gates of sigmoid(s), 'gates' their census after the epoch.
  """
  return {
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
    'gates': progress_bar.gate_counts(census) if census is not None else None,
  }


def epoch_line(row: Row) -> str:
  """One line for people about one epoch's row of metrics."""
  line = _EPOCH.format(**row)
  return line + _GATES.format(**row['gates']) if row['gates'] else line


def _event_writer(workdir: pathlib.Path):
  """clu's writer of TensorBoard events; None where it is not installed."""
  needed = ('clu', 'tensorflow', 'tensorboard')
  if any(importlib.util.find_spec(name) is None for name in needed):
    return None
  os.environ.setdefault('TF_CPP_MIN_LOG_LEVEL', '2')  # TensorFlow is talkative
  from clu import metric_writers

  return metric_writers.SummaryWriter(str(workdir / 'tensorboard'))
