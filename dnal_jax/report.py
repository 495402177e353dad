"""What a run tells while it goes on, and the table at its end."""

from collections.abc import Callable, Mapping
import importlib.util
import json
import os
import pathlib
from typing import Any

import numpy as np
import tqdm

Row = dict[str, Any]
_EPOCH = (
  '{stage} {epoch}/{epochs}: loss {loss:.4f}, train {train_top1:.2%},'
  ' validation {validation_top1:.2%}, {images_per_second:.0f} images/s'
)
_GATES = ', gates <0.1: {low}, undecided: {undecided}, >0.9: {high}'


class Metrics:
  """metrics.jsonl, one row an epoch, and TensorBoard where clu imports.

  On resuming, rows of epochs that will be run again are dropped first.
  """

  def __init__(self, workdir: pathlib.Path, epochs_done: int, events: bool):
    self._path = workdir / 'metrics.jsonl'
    kept = [row for row in self._read() if row['epochs_done'] <= epochs_done]
    part = self._path.with_name(f'{self._path.name}.{os.getpid()}.part')
    part.write_text(''.join(json.dumps(row) + '\n' for row in kept))
    part.replace(self._path)
    self._events = _event_writer(workdir) if events else None

  def _read(self) -> list[Row]:
    """The rows; a last line that a kill has cut short is not one."""
    if not self._path.exists():
      return []
    lines = self._path.read_text().split('\n')[:-1]
    return [json.loads(line) for line in lines]

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


class EpochBar:
  """Progress of one epoch on a terminal; silent elsewhere."""

  def __init__(self, title: str, steps: int, batch_size: int, done: int = 0):
    self._bar = tqdm.tqdm(
      total=steps * batch_size,
      initial=done * batch_size,
      desc=title,
      unit=' images',
      unit_scale=True,
      leave=False,
      disable=None,
      mininterval=0.2,
    )
    self._batch_size = batch_size
    self._last = 0.0

  def step(self, postfix: Callable[[], Mapping[str, Any]]) -> None:
    """One step done. `postfix` waits for the device, so it is asked only when
    the bar is drawn and the last time was half a second ago."""
    self._bar.update(self._batch_size)
    elapsed = self._bar.format_dict['elapsed']
    if not self._bar.disable and elapsed - self._last > 0.5:
      self._last = elapsed
      self._bar.set_postfix(postfix(), refresh=False)

  def close(self) -> None:
    self._bar.close()


def epoch_line(row: Row) -> str:
  """One line for people about one epoch's row of metrics."""
  line = _EPOCH.format(**row)
  return line + _GATES.format(**row['gates']) if row['gates'] else line


def closing(result: Mapping[str, Any]) -> str:
  """The table at the end of a run."""
  lines = [
    f'{result["network"]} on {result["dataset"]}, seed {result["seed"]}',
    '',
    f'{"":18}{"baseline":>16}{"learned":>16}{"ratio":>9}',
  ]
  baseline, learned = result['baseline'], result['learned'] or {}
  for key in ('params', 'macs', 'reference_params', 'reference_macs'):
    line = f'{key.replace("_", " "):18}{baseline[key]:>16,}'
    if key in learned:
      ratio = baseline[key] / max(learned[key], 1)
      line += f'{learned[key]:>16,}{ratio:>8.1f}x'
    lines.append(line)
  if result['learned']:
    gates = result['gates']
    lines.append(f'{"gates":18}{gates["total"]:>16,}{gates["kept"]:>16,}')
  lines.append('')
  for name, value in result['top1'].items():
    lines.append(f'{"top-1 " + name:18}{percent(value):>16}')
  lines.append(f'{"test top-1":18}{percent(result["test_top1"]):>16}')
  lines.append(f'{"test top-5":18}{percent(result["test_top5"]):>16}')
  difference = result['compact_max_abs_diff']
  if difference is not None:
    lines += ['', f'cut against hard-gated logits: differ by {difference:.1e}']
  return '\n'.join(lines)


def percent(value: float | None) -> str:
  """A share as a percentage; a figure that was not measured is a dash."""
  return '-' if value is None else f'{value:.2%}'


def _event_writer(workdir: pathlib.Path):
  """clu's writer of TensorBoard events; None where it is not installed."""
  needed = ('clu', 'tensorflow', 'tensorboard')
  if any(importlib.util.find_spec(name) is None for name in needed):
    return None
  from clu import metric_writers

  return metric_writers.SummaryWriter(str(workdir / 'tensorboard'))
