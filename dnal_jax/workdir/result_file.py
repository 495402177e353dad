"""result.json, and the table that a run prints at its end."""

from collections.abc import Mapping, Sequence
import dataclasses
import math
import pathlib
import textwrap
from typing import Any

from dnal_jax import errors, nn
from dnal_jax.config import RunConfig
from dnal_jax.cost import exact
from dnal_jax.training.prune import PrunableModel
from dnal_jax.workdir import checksums, json_files
from dnal_jax.workdir.run_state import RunState

# Keys of the counts and what the table calls them.
_COUNTS = {
  'params': 'params',
  'macs': 'macs',
  'weight_bytes': 'bytes of weights',
  'reference_params': 'reference params *',
  'reference_macs': 'reference macs *',
}
# The points of top1, and what the table calls them.
_POINTS = {'gated': 'search', 'pruned': 'masked', 'compact': 'pruned'}
_FOOTNOTE = """\
* counted as in the paper's tables, to be compared with those: channels whose
  gates are closed do not count, even where a shortcut keeps them"""
_ONE_COLUMN, _MOST_BARS = 16, 60  # gates


def make_result(
  config: RunConfig,
  run: RunState,
  model: PrunableModel,
  class_names: Sequence[str],
  final: Mapping[str, float],
  test: Mapping[str, float],
) -> dict[str, Any]:
  """What result.json holds; a figure that was not measured is None.

  `final` and `test` are evaluations (`Evaluator`) of the final network on the
  validation and on the test split.
  """
  whole = model.full_graph
  full = exact.of_graph(whole, whole, nn.KEEP_ALL)
  learned = None
  if run.keep:
    learned = exact.of_graph(model.graph, whole, model.net.keep)
  return {
    'network': config.network.name,
    'dataset': config.data.title,
    'class_names': list(class_names),
    'seed': config.seed,
    'stages': [dataclasses.asdict(stage) for stage in run.result.stages],
    'rollbacks': run.result.rollbacks,
    'baseline': dataclasses.asdict(full),
    'learned': dataclasses.asdict(learned) if learned else None,
    'gates': {
      'total': model.gated_channels,
      'kept': model.kept_channels if run.keep else None,
    },
    # Of each cost that had a target: what was asked for, the most that this
    # allows, and the cost of the pruned network.
    'target': _target(config, model, learned),
    'init_from': config.init_from,
    # Gate path -> channels of the unpruned and of the pruned network.
    'widths': _widths(model) if run.keep else None,
    'top1': {**run.result.top1, 'final': final['top1']},
    'top5': {'final': final['top5']},
    'images': {'validation': final['images'], 'test': test['images']},
    'best_checkpoint': run.result.best,
    'compact_max_abs_diff': run.result.compact_max_abs_diff,
    'test_top1': test['top1'],
    'test_top5': test['top5'],
  }


def read_result(path: pathlib.Path) -> dict[str, Any]:
  """The result of a finished run.

  Raises:
    UserError: it lacks what `closing_table` shows.
  """
  result = json_files.read_json(path)
  try:
    closing_table(result)
  except (
    LookupError,
    TypeError,
    ValueError,
    AttributeError,
    ArithmeticError,
  ) as error:
    raise errors.UserError(
      f"'{path}' is not a valid result.json ({error!r}); delete it, and the"
      ' same command makes it again from the last checkpoint'
    ) from error
  checksums.verify(path.parent, path.name)
  return result


def closing_table(result: Mapping[str, Any]) -> str:
  """The table of a result: costs of the unpruned and of the pruned network,
  accuracies, and widths. Figures that were not measured, or that an earlier
  version did not write, are left out or a dash."""
  title = '{network} on {dataset}, seed {seed}'.format(**result)
  baseline, learned = result['baseline'], result['learned']
  heads = f'{"unpruned":>16}{"pruned":>16}{"ratio":>9}' if learned else ''
  lines = [title, '', f'{"":18}{heads}'.rstrip()]
  for key, name in _COUNTS.items():
    if key in baseline or key != 'weight_bytes':
      line = f'{name:18}{baseline[key]:>16,}'
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
      label = f'top-1 {_POINTS.get(name, name)}'
      lines.append(f'{label:18}{percent(value):>16}')
  images = result.get('images')
  if images:
    lines[-1] += f'  of {images["validation"]:,} images'
  lines.append(f'{"test top-1":18}{percent(result["test_top1"]):>16}')
  if images:
    lines[-1] += f'  of {images["test"]:,} images'
  if len(result.get('class_names') or range(6)) > 5:
    lines.append(f'{"test top-5":18}{percent(result["test_top5"]):>16}')
  for name, one in (result.get('target') or {}).items():
    share = one['reached'] / one['limit']
    lines.append(
      f'{"target " + name:18}{one["limit"]:>16,}{one["reached"]:>16,}'
      f'{share:>9.2%}'
    )
  lines += ['', _FOOTNOTE, *_remarks(result)]
  if result.get('widths'):
    lines += ['', 'channels left of each gate', *_bars(result['widths'])]
  difference = result['compact_max_abs_diff']
  if difference is not None:
    lines += [
      '',
      'equivalence check, pruned vs. masked model: max abs logit difference'
      f' {difference:.1e}',
    ]
  return '\n'.join(lines)


def _remarks(result: Mapping[str, Any]) -> list[str]:
  """What is remarkable about a result, and the likely reason."""
  remarks = []
  final, before = result['top1']['final'], result['top1'].get('compact')
  steps = sum(stage['steps'] for stage in result.get('stages', ()))
  if final is not None and final < _most_by_guessing(result):
    remarks.append(
      f'The final accuracy, {percent(final)}, is about that of guessing. Likely'
      f' the run is too short (it had {steps:,} steps), the network too small'
      ' for the task, a learning rate too large, or data.mean and data.std are'
      ' not those of the images.'
    )
  elif before is not None and final is not None and final < before - 0.005:
    remarks.append(
      f'The final accuracy, {percent(final)}, is below that before fine-tuning,'
      f' {percent(before)}. Likely: too few epochs for the learning rate with'
      ' which the fine-tuning begins (stages.finetune.epochs, lr.base), or its'
      ' curve does not end near 0 (lr.end).'
    )
  target = result.get('target') or {}
  shares = [one['reached'] / one['limit'] for one in target.values()]
  if shares and max(shares) < 0.99:
    remarks.append(
      f'The cost is {max(shares):.2%} of the target: no channel more would fit.'
    )
  wrapped = ('\n'.join(textwrap.wrap(remark, 80)) for remark in remarks)
  return [line for remark in wrapped for line in ('', remark)]


def _most_by_guessing(result: Mapping[str, Any]) -> float:
  """An accuracy on validation that guessing may reach: of classes alike in
  number 1.2 times the mean, or two standard deviations above it."""
  classes = len(result.get('class_names') or ())
  if not classes:
    return 0.0
  mean, images = 1 / classes, (result.get('images') or {}).get('validation')
  spread = math.sqrt(mean * (1 - mean) / images) if images else 0.0
  return max(1.2 * mean, mean + 2 * spread)


def _target(
  config: RunConfig, model: PrunableModel, learned: exact.Counts | None
) -> dict[str, dict[str, float]] | None:
  given = [t for s in config.stages for t in (s.prune_to, s.target)]
  targets = [target for target in given if target]
  if learned is None or not targets:
    return None
  budget = targets[-1].budget(model.full_graph, model.full_graph)
  assert budget is not None
  return {
    cost.name: {
      'asked': getattr(targets[-1], cost.name),
      'limit': limit,
      'reached': getattr(learned, cost.name),
    }
    for cost, limit in zip(budget.costs, budget.limits, strict=True)
  }


def _widths(model: PrunableModel) -> dict[str, list[int]]:
  left = model.graph.gates
  return {
    gate: [len(ids), len(left.get(gate, ()))]
    for gate, ids in model.full_gates.items()
  }


def _bars(widths: Mapping[str, Sequence[int]]) -> list[str]:
  """Lines of at most 80 characters that show how many channels are left of
  each gate; of each block, where there are too many gates."""
  if len(widths) > _MOST_BARS:
    blocks: dict[str, list[int]] = {}
    for gate, (full, left) in widths.items():
      block = blocks.setdefault(gate.partition('/')[0], [0, 0])
      block[0], block[1] = block[0] + full, block[1] + left
    widths = blocks
  name_width = max(map(len, widths))
  digits = max(len(f'{full}') for full, _ in widths.values())
  length = 20 if len(widths) <= _ONE_COLUMN else 6
  cells = []
  for name, (full, left) in widths.items():
    filled = min(-(-length * left // full), length)  # rounded up
    bar = '#' * filled + '.' * (length - filled)
    counts = f'{left:{digits}}/{full:<{digits}}'
    cells.append(f'{name:{name_width}} {bar} {counts}')
  columns = 1 if len(widths) <= _ONE_COLUMN else 82 // (len(cells[0]) + 2)
  rows = -(-len(cells) // max(columns, 1))
  return ['  '.join(cells[row::rows]).rstrip() for row in range(rows)]


def percent(value: float | None) -> str:
  """A share as a percentage; a figure that was not measured is a dash."""
  return '-' if value is None else f'{value:.2%}'
