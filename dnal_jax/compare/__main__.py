r"""Compares ways to a small network, at equal cost and equal epochs.

  python -m dnal_jax.compare --config=configs/vgg16_fashion_mnist.py \
    --targets=macs=0.5,macs=0.25 --seeds=3 --workdir=DIR [--list]

Each cell of the table is an ordinary run in DIR/METHOD/TARGET/SEED; the same
command resumes, and several processes may share DIR. All methods train for as
many epochs as the config's warm-up, search and fine-tuning have together. In
the end DIR has table.md, table.json and chart.png. Until every cell is done,
accuracies are those on validation, and test is not read.
"""

from dnal_jax.parallel import signals, streams

if __name__ == '__main__':  # before the other imports, which take seconds
  streams.prepare()
  signals.listen()

from collections.abc import Sequence
import time

from absl import flags

from dnal_jax import cli, errors, paths
from dnal_jax.compare import chart, estimate, methods, table
from dnal_jax.compare.cells import Cell, Comparison
from dnal_jax.data import cache
from dnal_jax.parallel import compile_cache

FLAGS = flags.FlagValues()
_CONFIG = cli.define_config('Config file: configs/NAME.py.', FLAGS)
_WORKDIR = flags.DEFINE_string(
  'workdir', None, 'Folder of the comparison.', flag_values=FLAGS
)
_TARGETS = flags.DEFINE_list(
  'targets',
  ['macs=0.5', 'macs=0.25'],
  'Costs to compare at, such as macs=0.25 or params=0.1: up to 1 a share of the'
  ' full network, above 1 a number.',
  flag_values=FLAGS,
)
_METHODS = flags.DEFINE_list(
  'methods', [], 'Names of methods; all if none are given.', flag_values=FLAGS
)
_SEEDS = flags.DEFINE_integer(
  'seeds', 3, 'Number of seeds, from 0.', lower_bound=1, flag_values=FLAGS
)
_LIST = flags.DEFINE_bool(
  'list',
  False,
  'List the methods and the runs with the time that they take by a few measured'
  ' steps, and run nothing.',
  flag_values=FLAGS,
)
WAIT = 20.0  # seconds, where other processes hold all runs that are left


def body(argv: Sequence[str]) -> None:
  cli.refuse_arguments(argv)
  compile_cache.keep_in(cache.path('compiled'))
  if cli.config_of(_CONFIG) is None or not _WORKDIR.value:
    raise errors.UserError(
      'both --config=configs/NAME.py and --workdir=DIR must be given'
    )
  variants = {
    variant: cli.config_of_variant(variant)
    for variant in ('', 'target', 'baseline')
  }
  comparison = Comparison(
    methods.Problem.create(variants),
    paths.local('--workdir', _WORKDIR.value),
    _names(),
    [_target(text) for text in _TARGETS.value],
    _SEEDS.value,
  )
  if _LIST.value:
    print(estimate.text(comparison))
    return
  cells = list(comparison.cells())
  _run_all(comparison, cells)
  rows = [table.read_row(comparison, cell) for cell in cells]
  rows = table.with_test(comparison, rows, cells)
  lines = table.summary(rows)
  table.write(comparison.workdir, rows, lines)
  chart.write(comparison.workdir / 'chart.png', lines)
  print(f'\n{table.markdown(lines)}\n\n{table.EXPLANATION}')
  print(f"\nalso in '{comparison.workdir}': table.md, table.json, chart.png")


def _run_all(comparison: Comparison, cells: list[Cell]) -> None:
  """Runs what is not done; waits for what other processes hold."""
  while left := [cell for cell in cells if not comparison.is_done(cell)]:
    ran = [
      comparison.run(cell) for cell in left if not comparison.is_done(cell)
    ]
    if not any(ran) and any(not comparison.is_done(cell) for cell in cells):
      print(
        f'{len(left)} runs are left, which other processes hold', flush=True
      )
      time.sleep(WAIT)


def _names() -> list[str]:
  """The methods that are asked for, and the one that all are compared with."""
  unknown = [name for name in _METHODS.value if name not in methods.METHODS]
  if unknown:
    hint = errors.did_you_mean(unknown[0], methods.METHODS)
    raise errors.UserError(f"--methods has '{unknown[0]}'{hint}")
  names = _METHODS.value or list(methods.METHODS)
  return list(dict.fromkeys([methods.UNIFORM, *names]))


def _target(text: str) -> tuple[str, float]:
  """'macs=0.25' -> ('macs', 0.25)."""
  kind, _, value = text.partition('=')
  try:
    number = float(value)
  except ValueError:
    number = 0.0
  if kind not in ('macs', 'params') or number <= 0:
    raise errors.UserError(
      f"--targets has '{text}'; give macs=SHARE or params=SHARE, such as"
      ' macs=0.25,macs=0.1'
    )
  return kind, number


if __name__ == '__main__':
  cli.main(body, FLAGS)
