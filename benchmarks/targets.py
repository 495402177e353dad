"""Runs a config at targets, over seeds, threads and dtypes: is the cost met?

  python benchmarks/targets.py --workdir=DIR [--config=quickstart]
      [--targets=macs=0.1] [--seeds=5] [--threads=2,1]
      [--dtypes=float32,bfloat16] [--json=FILE] [-- FLAGS of dnal_jax.main]

Prints a Markdown table of the cost reached over the limit, and of accuracies on
validation and test, beside the full network, trained for as many epochs in all.
Runs of one seed, thread count and dtype share a warm-up. Each is an ordinary
run in a folder below DIR; the same command resumes. Threads are processor cores
that a run may use (Linux).
"""

import argparse
from collections.abc import Iterator, Mapping, Sequence
import itertools
import json
import os
import pathlib
import statistics
import subprocess
import sys
from typing import Any

import jax

from dnal_jax.config import read_config


def run(
  workdir: pathlib.Path, config: str, threads: int, flags: Sequence[str]
) -> dict[str, Any]:
  """Runs a config on so many cores, unless it is finished; its result."""
  command = (sys.executable, '-m', 'dnal_jax.main', f'--config={config}')
  cores = sorted(os.sched_getaffinity(0))[:threads]
  subprocess.run(
    (
      *('taskset', '-c', ','.join(map(str, cores)), *command),
      *(f'--workdir={workdir}', *flags),
    ),
    check=True,
    stdout=subprocess.DEVNULL,
  )
  return json.loads((workdir / 'result.json').read_text())


def rows(args: argparse.Namespace) -> Iterator[dict[str, Any]]:
  """One for each run, as it is done."""
  stages: Any = read_config(args.config).stages
  epochs = sum(stages[n].epochs for n in ('warmup', 'search', 'finetune'))
  full = f'--config.stages.baseline.epochs={epochs}'
  for seed, threads, dtype in itertools.product(
    range(args.seeds), args.threads, args.dtypes
  ):
    flags = [
      f'--config.seed={seed}',
      f'--config.compute_dtype={dtype}',
      '--config.tensorboard=False',
      *args.flags,
    ]
    folder = args.workdir / f'{seed}_{threads}_{dtype}'
    setting = {'seed': seed, 'threads': threads, 'dtype': dtype}
    whole = run(
      folder / 'full', f'{args.config}:baseline', threads, [*flags, full]
    )
    check(folder / 'full', setting, None)
    yield {**setting, 'target': None, **_figures(whole)}
    parent: list[str] = []
    for target in args.targets:
      workdir = folder / target.replace('=', '_')
      asked = [f'--config.target.{one}' for one in target.split('+')]
      config = f'{args.config}:target'
      found = run(workdir, config, threads, [*flags, *asked, *parent])
      check(workdir, setting, target)
      parent = parent or [f'--config.init_from={workdir}']
      yield {**setting, 'target': target, **_figures(found)}


def check(
  workdir: pathlib.Path, setting: Mapping[str, Any], target: str | None
) -> None:
  """Exits unless a finished run is what its row says: of this seed and dtype,
  and with this target, such as 'macs=0.5+params=0.25'."""
  config = json.loads((workdir / 'config.json').read_text())['config']
  found = json.loads((workdir / 'result.json').read_text())['target'] or {}
  for key, was, wanted in (
    ('seed', config['seed'], setting['seed']),
    ('compute_dtype', config['compute_dtype'], setting['dtype']),
    (
      'target',
      {kind: one['asked'] for kind, one in found.items()},
      {
        kind: float(value)
        for one in (target or '').split('+')
        for kind, _, value in [one.partition('=')]
        if kind
      },
    ),
  ):
    if was != wanted:
      sys.exit(f"'{workdir}' has {key} {was}, where its row says {wanted}")


def _figures(result: dict[str, Any]) -> dict[str, Any]:
  target = result['target'] or {}
  sizes = result['learned'] or result['baseline']
  return {
    'reached': {
      kind: one['reached'] / one['limit'] for kind, one in target.items()
    },
    'macs': sizes['macs'],
    'params': sizes['params'],
    'validation': result['top1']['final'],
    'test': result['test_top1'],
    'seconds': sum(stage['seconds'] for stage in result['stages']),
  }


def table(found: Sequence[dict[str, Any]]) -> str:
  """Markdown: ranges over seeds of each setting and target."""
  lines = [
    '| target | threads | dtype | reached / target | macs | params |'
    ' validation | test |',
    '|---|---|---|---|---|---|---|---|',
  ]
  groups: dict[tuple[Any, ...], list[dict[str, Any]]] = {}
  for row in found:
    key = row['target'] or 'full network', row['threads'], row['dtype']
    groups.setdefault(key, []).append(row)
  for key, of_group in sorted(groups.items(), key=lambda item: str(item[0])):
    reached = [max(r['reached'].values()) for r in of_group if r['reached']]
    span = f'{min(reached):.4f} to {max(reached):.4f}' if reached else ''
    cells = [*map(str, key), span]
    for name in ('macs', 'params'):
      cells.append(f'{statistics.median(r[name] for r in of_group):,.0f}')
    for name in ('validation', 'test'):
      values = [100 * r[name] for r in of_group]
      cells.append(f'{statistics.mean(values):.2f} ({_interval(values)})')
    lines.append(f'| {" | ".join(cells)} |')
  return '\n'.join(lines)


def _interval(values: Sequence[float]) -> str:
  return f'{min(values):.2f} to {max(values):.2f}'


def main() -> None:
  words = sys.argv[1:]
  at = words.index('--') if '--' in words else len(words)
  parser = argparse.ArgumentParser(description=__doc__)
  parser.add_argument('--workdir', type=pathlib.Path, required=True)
  parser.add_argument('--config', default='quickstart')
  parser.add_argument('--targets', type=_list, default=['macs=0.1'])
  parser.add_argument('--seeds', type=int, default=5)
  parser.add_argument('--threads', type=_ints, default=[2, 1])
  parser.add_argument('--dtypes', type=_list, default=['float32', 'bfloat16'])
  parser.add_argument('--json', type=pathlib.Path)
  args = parser.parse_args(words[:at])
  args.flags = words[at + 1 :]
  found = []
  for row in rows(args):
    print(json.dumps(row), file=sys.stderr, flush=True)
    found.append(row)
  print(table(found))
  if args.json:
    device = jax.devices()[0].device_kind
    value = {'jax': jax.__version__, 'device': device, 'rows': found}
    args.json.write_text(json.dumps(value, indent=1) + '\n')


def _list(text: str) -> list[str]:
  return text.split(',')


def _ints(text: str) -> list[int]:
  return [int(word) for word in text.split(',')]


if __name__ == '__main__':
  main()
