r"""Compiles the steps of a run for a TPU slice, with no TPU attached.

python -m dnal_jax.dryrun --config=configs/mbv2_imagenet.py --topology=v5e:4x4

Tells of each stage whether it fits into the memory of a chip, what the chips
exchange, and what bounds the time of a step. The programs are those that a run
compiles for its train steps; evaluation and the cut are not compiled, and
no image is read.

  --batch=N          in place of the config's batch_size, over all chips
  --largest_batch    look for the largest that fits
  --architecture=DIR/architecture.json    the network that a search has left
  --json             one JSON object on standard output
"""

from collections.abc import Callable, Iterator, Sequence
import contextlib
from functools import partial
import importlib.metadata
import json
import os
import pathlib
import sys
from typing import Any

from absl import flags
import jax
from ml_collections import config_flags

from dnal_jax import cli, errors
from dnal_jax.config import parse_config
from dnal_jax.parallel import mesh
from dnal_jax.tpu import aot, topologies
from dnal_jax.workdir import architecture

FLAGS = flags.FlagValues()
_CONFIG = config_flags.DEFINE_config_file(
  'config', None, 'The run, a file.', flag_values=FLAGS
)
_TOPOLOGY = flags.DEFINE_string(
  'topology', None, f'The slice: {topologies.EXAMPLES}.', flag_values=FLAGS
)
_BATCH = flags.DEFINE_integer(
  'batch',
  None,
  "Images of a step, all chips together; else the config's.",
  flag_values=FLAGS,
)
_LARGEST = flags.DEFINE_bool(
  'largest_batch',
  False,
  'Look for the largest power of two times the number of chips that fits.',
  flag_values=FLAGS,
)
_ARCHITECTURE = flags.DEFINE_string(
  'architecture',
  None,
  'What a search has left: DIR/architecture.json.',
  flag_values=FLAGS,
)
_JSON = flags.DEFINE_bool(
  'json', False, 'Print JSON rather than text.', flag_values=FLAGS
)


def largest(
  fits: Callable[[int], bool], start: int, n: int, most: int
) -> tuple[int | None, int | None]:
  """The largest n, 2n, 4n, ... that fits, and the least that was seen not to;
  None: there is none, or it would be above `most`. Begins at or below `start`,
  doubles or halves, and asks for no batch twice."""
  batch, best, failed = n, None, None
  while 2 * batch <= start:
    batch *= 2
  while n <= batch <= most and batch not in (best, failed):
    if fits(batch):
      best, batch = batch, 2 * batch
    else:
      failed, batch = batch, batch // 2
  return best, failed


def text(stage: dict[str, Any]) -> str:
  """A stage of the report for people."""
  told = f'compiled in {stage["compile_seconds"]:.0f} s'
  if stage['same_as']:
    told = f'as {stage["same_as"]}'
  lines = [f'{stage["stage"]}: {told}']
  memory, hbm = stage['memory'], _size(stage['hbm'])
  if memory is None:
    lines.append(
      f'  memory       does not fit into {hbm} a chip: {stage["compiler_told"]}'
    )
  else:
    verdict = 'fits' if stage['fits'] else 'does not fit'
    parts = ', '.join(
      f'{key} {_size(size)}' for key, size in memory.items() if key != 'total'
    )
    lines.append(
      f'  memory       {_size(memory["total"])} of {hbm} a chip: {verdict}'
      f' ({parts})'
    )
  lines.append(
    f'  macs         {stage["macs"]:.4g} forwards,'
    f' {stage["macs_with_gradients"]:.4g} with gradients'
  )
  ideal = _size(stage['ideal_all_reduce'])
  if stage['collectives'] is None:
    return '\n'.join([*lines, f'  exchanged    at least {ideal}'])
  moved = ', '.join(
    f'{kind} {_size(size)}' for kind, size in stage['collectives'].items()
  )
  lines.append(f'  exchanged    {moved or "nothing"}; ideal {ideal}')
  seconds = dict(stage['bounds'])
  bound = max(seconds, key=seconds.__getitem__)
  ways = ', '.join(
    f'{way.replace("_", "-")} {1e3 * value:.3g}'
    for way, value in seconds.items()
  )
  lines.append(
    f'  a step       bound by {bound.replace("_", "-")}, by published speeds'
    f' (ms: {ways})'
  )
  return '\n'.join(lines)


def _largest(
  stages: Callable[[int], list[dict[str, Any]]], start: int, n: int, most: int
) -> dict[str, Any]:
  """The part of the report that is of the largest batch that fits, or, if none
  does, of the smallest."""
  seen: dict[int, list[dict[str, Any]]] = {}

  def fits(batch: int) -> bool:
    seen[batch] = stages(batch)
    return all(row['fits'] for row in seen[batch])

  best, failed = largest(fits, min(start, most), n, most)
  if not seen:
    raise errors.UserError(
      f'{n} chips are more than there are images to train on, {most}; take a'
      ' smaller --topology'
    )
  _say(
    f'\nthe largest batch that fits is {best}; the least seen not to, {failed}'
  )
  return {
    'largest_batch': best,
    'does_not_fit': failed,
    'batch_size': best or n,
    'stages': seen[best or n],
  }


def _size(size: float) -> str:
  units = ['GiB', 'MiB', 'KiB', 'bytes']
  while abs(size) >= 1000 and len(units) > 1:
    size, _ = size / 1024, units.pop()
  return f'{size:.4g} {units[-1]}'


@contextlib.contextmanager
def _nothing_else_on_stdout() -> Iterator[None]:
  """What libraries below Python print goes to standard error meanwhile."""
  sys.stdout.flush()
  ours = os.dup(1)
  os.dup2(2, 1)
  try:
    yield
  finally:
    os.dup2(ours, 1)
    os.close(ours)


def _given() -> tuple[dict[str, Any], str]:
  """The config, with --batch in it, and the topology."""
  config = cli.config_of(_CONFIG)
  if config is None or not _TOPOLOGY.value:
    raise errors.UserError(
      'both --config=configs/NAME.py and --topology=SLICE must be given, such'
      f' as {topologies.EXAMPLES}'
    )
  if _BATCH.value is not None:
    if _BATCH.value <= 0:
      raise errors.UserError(f'--batch is {_BATCH.value}; it must be positive')
    config['batch_size'] = _BATCH.value
  return config, _TOPOLOGY.value


def _say(line: str) -> None:
  if not _JSON.value:
    print(line, flush=True)


def _stages(
  rehearsed: aot.AotCompiler, batch: int, n: int
) -> list[dict[str, Any]]:
  """Rows of the stages at that batch, up to the first that does not fit."""
  compiled = rehearsed.stages(batch)
  _say(f'\nbatch {batch}, {batch // n} a chip')
  rows: list[dict[str, Any]] = []
  while not rows or rows[-1]['fits']:
    with _nothing_else_on_stdout():
      row = next(compiled, None)
    if row is None:
      break
    _say(text(row))
    rows.append(row)
  return rows


def body(argv: Sequence[str]) -> None:
  cli.refuse_arguments(argv)
  config, topology = _given()
  with _nothing_else_on_stdout():  # and before JAX has done anything
    chip, devices = topologies.slice_of(topology)
  # Seconds of compiling are to be those of compiling.
  jax.config.update('jax_enable_compilation_cache', False)
  parsed, n = parse_config(config), len(devices)
  unit = n * parsed.grad_accum_steps
  net, batch = parsed.build(), parsed.batch_size
  if _ARCHITECTURE.value:
    path = pathlib.Path(_ARCHITECTURE.value)
    net = architecture.read_learned(path, net, parsed.image_shape)
  rehearsed = aot.AotCompiler(parsed, net, chip)
  images = rehearsed.inputs(1 if _LARGEST.value else batch).images
  report = {
    'topology': topology,
    'chips': n,
    'network': parsed.network.name,
    'architecture': _ARCHITECTURE.value,
    'compute_dtype': parsed.compute_dtype,
    'versions': {
      name: importlib.metadata.version(name) for name in ('jax', 'libtpu')
    },
  }
  with jax.set_mesh(mesh.make_mesh(devices)):
    mesh.check_divisible('eval_batch_size', parsed.eval_batch_size)
    if not _LARGEST.value:
      key = 'batch_size' if _BATCH.value is None else '--batch'
      mesh.check_divisible(key, batch, parsed.grad_accum_steps)
    _say(f'{parsed.network.name} on {n} chips ({topology})')
    if _LARGEST.value:
      report |= _largest(partial(_stages, rehearsed, n=n), batch, unit, images)
    else:
      report |= {'batch_size': batch, 'stages': _stages(rehearsed, batch, n)}
  if _JSON.value:
    print(json.dumps(report, indent=1))


if __name__ == '__main__':
  cli.main(body, FLAGS)
