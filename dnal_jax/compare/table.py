"""The table of a comparison: means over seeds, intervals, differences."""

from collections.abc import Iterator, Mapping, Sequence
import json
import math
import pathlib
import statistics
from typing import Any, NamedTuple

from scipy import stats

from dnal_jax.compare import methods
from dnal_jax.compare.cells import FULL, Cell, Comparison, target_name
from dnal_jax.search.budget import limit_of
from dnal_jax.workdir import json_files


class Mean(NamedTuple):
  """Of several seeds, with half of the 95 % interval of the mean (Student's
  t); None for a single seed."""

  mean: float
  half: float | None

  @classmethod
  def of(cls, values: Sequence[float]) -> 'Mean':
    mean = statistics.fmean(values)
    if len(values) < 2:
      return cls(mean, None)
    quantile = stats.t.ppf(0.975, len(values) - 1)
    spread = statistics.stdev(values) / math.sqrt(len(values))
    return cls(mean, float(quantile * spread))

  def percent(self, sign: str = '') -> str:
    """'91.20 +- 0.31', in points."""
    half = '' if self.half is None else f' +- {100 * self.half:.2f}'
    return f'{100 * self.mean:{sign}.2f}{half}'


def read_row(comparison: Comparison, cell: Cell) -> dict[str, Any]:
  """What a finished run has cost and reached on validation, without its test
  accuracy."""
  workdir = comparison.path(cell)
  result = json_files.read_json(workdir / 'result.json')
  sizes = result['learned'] or result['baseline']
  _check(comparison, cell, workdir, result)
  return {
    'method': cell.method,
    'target': cell.target and target_name(cell.target),
    'seed': cell.seed,
    'macs': sizes['macs'],
    'params': sizes['params'],
    'validation': result['top1']['final'],
    'training_macs': _training_macs(comparison, workdir, result),
  }


def _check(
  comparison: Comparison,
  cell: Cell,
  workdir: pathlib.Path,
  result: Mapping[str, Any],
) -> None:
  """A row is of the seed, the epochs and the cost that it names, or the table
  is not written."""
  epochs = sum(stage['epochs'] for stage in result['stages'])
  wanted = comparison.problem.epochs()
  assert result['seed'] == cell.seed, (workdir, result['seed'])
  assert epochs == wanted, (workdir, epochs, wanted)
  if cell.target is not None:
    kind, share = cell.target
    full, reached = result['baseline'][kind], result['learned'][kind]
    limit = limit_of(share, full)
    assert reached <= limit, (workdir, reached, limit)


def _training_macs(
  comparison: Comparison, workdir: pathlib.Path, result: Mapping[str, Any]
) -> int:
  """Multiply-adds of the network's forward passes on all training images, in
  all stages, those included that another run has done for it."""
  config = json_files.read_json(workdir / 'config.json')['config']
  full, small = (
    (result[key] or result['baseline'])['macs']
    for key in ('baseline', 'learned')
  )
  total, pruned = 0, config['init_at'] == 'architecture'
  for stage in result['stages']:
    values = config['stages'][stage['name']]
    prunes = values.get('gate_threshold') is not None
    pruned |= prunes or values.get('prune_by', 'gates') != 'gates'
    macs = small if pruned else full
    total += macs * stage['steps'] * config['batch_size']
  return total


def with_test(
  comparison: Comparison, rows: Sequence[Mapping[str, Any]], cells: list[Cell]
) -> list[dict[str, Any]]:
  """The rows of all cells with their test accuracy, read for the first time;
  only once every cell is done, so that nothing can be chosen by it."""
  missing = [cell.folder for cell in cells if not comparison.is_done(cell)]
  assert not missing, missing
  return [
    {**row, 'test': _result(comparison, cell)['test_top1']}
    for row, cell in zip(rows, cells, strict=True)
  ]


def _result(comparison: Comparison, cell: Cell) -> Any:
  return json_files.read_json(comparison.path(cell) / 'result.json')


def summary(rows: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
  """A line for each method at each target, over its seeds: means, and
  differences to the uniform network of the same seed.

  Accuracies are on test where rows have it, else on validation.
  """
  key = 'test' if rows and 'test' in rows[0] else 'validation'
  full = {r['seed']: r for r in rows if r['method'] == FULL}
  cost = statistics.fmean(r['training_macs'] for r in full.values())
  lines = []
  for method, target in dict.fromkeys((r['method'], r['target']) for r in rows):
    of_line = _of(rows, method, target)
    uniform = _of(rows, methods.UNIFORM, target)
    both = [seed for seed in of_line if seed in uniform]
    paired = [of_line[s][key] - uniform[s][key] for s in both]
    values = list(of_line.values())
    lines.append(
      {
        'method': method,
        'target': target,
        'seeds': list(of_line),
        'macs': statistics.fmean(r['macs'] for r in values),
        'params': statistics.fmean(r['params'] for r in values),
        'validation': Mean.of([r['validation'] for r in values]),
        key: Mean.of([r[key] for r in values]),
        'over_uniform': Mean.of(paired) if paired else None,
        'training': statistics.fmean(r['training_macs'] for r in values) / cost,
      }
    )
  return lines


def _of(
  rows: Sequence[Mapping[str, Any]], method: str, target: str | None
) -> dict[int, Mapping[str, Any]]:
  """{seed: row}."""
  return {
    r['seed']: r for r in rows if (r['method'], r['target']) == (method, target)
  }


def markdown(lines: Sequence[Mapping[str, Any]]) -> str:
  """The summary as a table; its columns are explained below it."""
  heads = ['target', 'method', 'seeds', 'macs', 'params', 'validation', 'test']
  heads += ['test - uniform', 'training']
  table = [heads, ['---'] * len(heads)]
  for line in sorted(lines, key=lambda n: n['target'] is not None):
    over = line['over_uniform']
    test = line.get('test')
    table.append(
      [
        (line['target'] or '').replace('_', ' '),
        line['method'],
        str(len(line['seeds'])),
        f'{line["macs"]:,.0f}',
        f'{line["params"]:,.0f}',
        line['validation'].percent(),
        test.percent() if test else 'not read yet',
        over.percent('+') if over and line['method'] != methods.UNIFORM else '',
        f'{line["training"]:.2f}',
      ]
    )
  return '\n'.join(f'| {" | ".join(cells)} |' for cells in table)


EXPLANATION = """\
Top-1 in %, mean over seeds with its 95 % interval (Student's t); differences
are paired by seed. training: multiply-adds of the forward passes of the whole
run, its warm-up and its search included, over those of the full network trained
as long. lambda's trial runs are not counted."""


def write(
  workdir: pathlib.Path,
  rows: Sequence[Mapping[str, Any]],
  lines: Sequence[Mapping[str, Any]],
) -> None:
  """table.md and table.json."""
  text = f'{markdown(lines)}\n\n{EXPLANATION}\n'
  (workdir / 'table.md').write_text(text)
  value = {'rows': list(rows), 'summary': [_as_json(n) for n in lines]}
  (workdir / 'table.json').write_text(json.dumps(value, indent=1) + '\n')


def _as_json(line: Mapping[str, Any]) -> dict[str, Any]:
  return {
    key: value._asdict() if isinstance(value, Mean) else value
    for key, value in line.items()
  }


def points(
  lines: Sequence[Mapping[str, Any]],
) -> Iterator[tuple[str, list[float], list[float], list[float]]]:
  """(method, macs, accuracy in %, half intervals) of each of the curves."""
  for method in dict.fromkeys(line['method'] for line in lines):
    of_method = sorted(
      (line for line in lines if line['method'] == method),
      key=lambda line: line['macs'],
    )
    accuracy = [n.get('test') or n['validation'] for n in of_method]
    yield (
      method,
      [n['macs'] for n in of_method],
      [100 * a.mean for a in accuracy],
      [100 * (a.half or 0.0) for a in accuracy],
    )
