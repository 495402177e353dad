"""What a run tells while it goes on, and the table at its end."""

from collections.abc import Callable, Mapping
import dataclasses
import importlib.util
import json
import os
import pathlib
from typing import Any

import numpy as np
import tqdm

from dnal_jax import compact, errors, files
from dnal_jax.position import Position
from dnal_jax.settings import Settings
from dnal_jax.stages import Stage

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
          raise TypeError(f'epochs_done is {files.told(done)}')
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


class StageBar:
  """Progress of one stage on a terminal; elsewhere one line an epoch."""

  def __init__(
    self,
    steps: int,
    batch_size: int,
    done: int,
    also: Callable[[int, Mapping[str, Any]], None],  # told what `steps` is
  ):
    self._also = also
    self._bar = tqdm.tqdm(
      total=steps * batch_size,
      initial=done * batch_size,
      unit=' images',
      unit_scale=True,
      leave=False,
      disable=None,
      mininterval=0.2,
    )
    self._batch_size = batch_size

  def begin(self, title: str) -> None:
    """An epoch begins."""
    self._bar.set_description(title, refresh=False)

  def steps(self, done: int, metrics: Mapping[str, Any]) -> None:
    """So many steps done; metrics of the last of them."""
    self._bar.update(done * self._batch_size)
    shown = {
      'loss': f'{metrics["loss"] / self._batch_size:.3f}',
      'accuracy': f'{metrics["correct"] / self._batch_size:.1%}',
    }
    if 'gates' in metrics:
      shown['gates <0.1/undecided/>0.9'] = '/'.join(
        str(n) for n in named(metrics['gates']).values()
      )
    self._bar.set_postfix(shown, refresh=False)
    self._also(done, metrics)

  def tell(self, line: str) -> None:
    """Prints a line above the bar; '' is none."""
    if line:
      tqdm.tqdm.write(line)

  def close(self) -> None:
    self._bar.close()


def named(census: Any) -> dict[str, int]:
  """How many gates are below 0.1, undecided, above 0.9, by name."""
  names = ('low', 'undecided', 'high')
  return dict(zip(names, map(int, census), strict=True))


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
  the sums over its steps (`Position.add`).

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
    'gates': named(census) if census is not None else None,
  }


def epoch_line(row: Row) -> str:
  """One line for people about one epoch's row of metrics."""
  line = _EPOCH.format(**row)
  return line + _GATES.format(**row['gates']) if row['gates'] else line


def tell_cut(kept: int, gates: int, gated: float, cut: float) -> None:
  """Prints what the cut has left, and top-1 (shares of 1) before and after."""
  tqdm.tqdm.write(
    f'cut to {kept} of {gates} gated channels: validation {gated:.2%} gated,'
    f' {cut:.2%} cut'
  )


def tell_broken(of_each: list[list[str]]) -> None:
  """Prints how many images any process has left out, if one has."""
  names = {name for names in of_each for name in names}
  if names:
    print(f'{len(names)} images could not be decoded and were skipped')


def result(
  settings: Settings,
  position: Position,
  *,
  baseline: compact.Counts,
  learned: compact.Counts | None,
  gates: int,
  kept: int | None,
  final: Mapping[str, float],
  test: Mapping[str, float],
) -> dict[str, Any]:
  """What result.json holds; a figure that was not measured is None.

  `final` and `test` are evaluations of the last network, on the validation
  and on the test split; shares of 1.
  """
  return {
    'network': settings.network.name,
    'dataset': settings.data.title,
    'seed': settings.seed,
    'stages': position.stages,
    'rollbacks': position.rollbacks,
    'baseline': dataclasses.asdict(baseline),
    'learned': dataclasses.asdict(learned) if learned else None,
    'gates': {'total': gates, 'kept': kept},
    'top1': {**position.top1, 'final': final['top1']},
    'top5': {'final': final['top5']},
    'best_checkpoint': position.best,
    'compact_max_abs_diff': position.compact_max_abs_diff,
    'test_top1': test['top1'],
    'test_top5': test['top5'],
  }


def read_result(path: pathlib.Path) -> dict[str, Any]:
  """The result of a finished run.

  Raises:
    UserError: `closing` could not tell it.
  """
  result = files.read_json(path)
  try:
    closing(result)
  except (
    LookupError,
    TypeError,
    ValueError,
    AttributeError,
    ArithmeticError,
  ) as error:
    raise errors.UserError(
      f"'{path}' is not a result.json of ours ({error!r}); delete it, and the"
      ' same command makes it again from the last checkpoint'
    ) from error
  return result


def closing(result: Mapping[str, Any]) -> str:
  """The table at the end of a run."""
  title = '{network} on {dataset}, seed {seed}'.format(**result)
  baseline, learned = result['baseline'], result['learned']
  heads = f'{"baseline":>16}{"learned":>16}{"ratio":>9}' if learned else ''
  lines = [title, '', f'{"":18}{heads}'.rstrip()]
  for key in ('params', 'macs', 'reference_params', 'reference_macs'):
    line = f'{key.replace("_", " "):18}{baseline[key]:>16,}'
    if learned:
      ratio = baseline[key] / max(learned[key], 1)
      line += f'{learned[key]:>16,}{ratio:>8.1f}x'
    lines.append(line)
  if learned:
    gates = result['gates']
    lines.append(f'{"gates":18}{gates["total"]:>16,}{gates["kept"]:>16,}')
  lines.append('')
  for name, value in result['top1'].items():
    if value is not None:
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
  os.environ.setdefault('TF_CPP_MIN_LOG_LEVEL', '2')  # TensorFlow is talkative
  from clu import metric_writers

  return metric_writers.SummaryWriter(str(workdir / 'tensorboard'))
