r"""Compiles the steps of a run for a TPU slice, with no TPU attached.

python -m dnal_jax.dryrun --config=configs/mbv2_imagenet.py --topology=v5e:4x4

Reports for each stage whether it fits into the memory of a chip, how many bytes
the chips exchange, and which resource bounds the time of a step. The programs
are the train steps that a run compiles; evaluation and pruning are not
compiled, and no image is read.

  --batch=N          batch size over all chips, instead of the config's
  --largest_batch    searches for the largest batch that fits
  --architecture=DIR/architecture.json    the network that a search has found
  --json             prints one JSON object to standard output
"""

from collections.abc import Callable, Iterator, Sequence
import contextlib
from functools import partial
import importlib.metadata
import json
import os
import sys
from typing import Any

from absl import flags
import jax

from dnal_jax import cli, errors, paths
from dnal_jax.config import parse_config
from dnal_jax.parallel import mesh
from dnal_jax.tpu import aot, topologies
from dnal_jax.workdir import architecture

FLAGS = flags.FlagValues()
_CONFIG = cli.define_config('Config file: configs/NAME.py.', FLAGS)
_TOPOLOGY = flags.DEFINE_string(
  'topology',
  None,
  f'TPU slice, such as {topologies.EXAMPLES}.',
  flag_values=FLAGS,
)
_BATCH = flags.DEFINE_integer(
  'batch',
  None,
  "Global batch size, over all chips, instead of the config's.",
  flag_values=FLAGS,
)
_LARGEST = flags.DEFINE_bool(
  'largest_batch',
  False,
  'Search for the largest power of two times the number of chips that fits.',
  flag_values=FLAGS,
)
_ARCHITECTURE = flags.DEFINE_string(
  'architecture',
  None,
  'Architecture that a search has found: DIR/architecture.json.',
  flag_values=FLAGS,
)
_JSON = flags.DEFINE_bool(
  'json', False, 'Print JSON instead of text.', flag_values=FLAGS
)


def largest(
  fits: Callable[[int], bool], start: int, n: int, most: int
) -> tuple[int | None, int | None]:
  """The largest of n, 2n, 4n, ... that fits, and the smallest that does not.

  None stands for no such batch, or none up to `most`. The search begins at or
  below `start`, doubles or halves, and calls `fits` at most once per batch.
  """
  batch, best, failed = n, None, None
  while 2 * batch <= start:
    batch *= 2
  while n <= batch <= most and batch not in (best, failed):
    if fits(batch):
      best, batch = batch, 2 * batch
    else:
      failed, batch = batch, batch // 2
  return best, failed


def describe(stage: dict[str, Any]) -> str:
  """A stage of the report as text."""
  how = f'compiled in {stage["compile_seconds"]:.0f} s'
  if stage['same_as']:
    how = f'same program as {stage["same_as"]}'
  lines = [f'{stage["stage"]}: {how}']
  memory, hbm = stage['memory'], _size(stage['hbm'])
  if memory is None:
    message = stage['compiler_message']
    lines.append(f'  memory       does not fit into {hbm} per chip: {message}')
  else:
    verdict = 'fits' if stage['fits'] else 'does not fit'
    parts = ', '.join(
      f'{key} {_size(size)}' for key, size in memory.items() if key != 'total'
    )
    lines.append(
      f'  memory       {_size(memory["total"])} of {hbm} per chip: {verdict}'
      f' ({parts})'
    )
  lines.append(
    f'  macs         {stage["macs"]:.4g} forward,'
    f' {stage["macs_with_gradients"]:.4g} with gradients'
  )
  ideal = _size(stage['ideal_all_reduce'])
  if stage['collectives'] is None:
    return '\n'.join([*lines, f'  exchanged    at least {ideal}'])
  exchanged = ', '.join(
    f'{kind} {_size(size)}' for kind, size in stage['collectives'].items()
  )
  lines.append(f'  exchanged    {exchanged or "nothing"}; ideal {ideal}')
  seconds = dict(stage['bounds'])
  slowest = max(seconds, key=seconds.__getitem__)
  bounds = ', '.join(
    f'{resource.replace("_", "-")} {1e3 * value:.3g}'
    for resource, value in seconds.items()
  )
  lines.append(
    f'  step         bound by {slowest.replace("_", "-")}, by published speeds'
    f' (ms: {bounds})'
  )
  return '\n'.join(lines)


def _report_largest(
  stages: Callable[[int], list[dict[str, Any]]], start: int, n: int, most: int
) -> dict[str, Any]:
  """The report's part about the largest batch that fits, or about the smallest
  batch if none fits.

  Raises:
    UserError: the smallest batch, `n`, is larger than the data set, `most`.
  """
  seen: dict[int, list[dict[str, Any]]] = {}

  def fits(batch: int) -> bool:
    seen[batch] = stages(batch)
    return all(row['fits'] for row in seen[batch])

  best, failed = largest(fits, min(start, most), n, most)
  if not seen:
    raise errors.UserError(
      f'the smallest batch is {n}, but there are {most} training images; use a'
      ' smaller --topology'
    )
  _print(f'\nlargest batch that fits: {best}; smallest that does not: {failed}')
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
def _stdout_to_stderr() -> Iterator[None]:
  """Sends what C++ libraries print to standard output to standard error."""
  sys.stdout.flush()
  stdout = os.dup(1)
  os.dup2(2, 1)
  try:
    yield
  finally:
    os.dup2(stdout, 1)
    os.close(stdout)


def _config_and_topology() -> tuple[dict[str, Any], str]:
  """The config, with --batch as its batch_size, and the topology.

  Raises:
    UserError: a flag is missing or has an impossible value.
  """
  config = cli.config_of(_CONFIG)
  if config is None or not _TOPOLOGY.value:
    raise errors.UserError(
      'both --config=configs/NAME.py and --topology=SLICE must be given; slices'
      f' are, for example, {topologies.EXAMPLES}'
    )
  if _BATCH.value is not None:
    if _BATCH.value <= 0:
      raise errors.UserError(f'--batch is {_BATCH.value}; it must be positive')
    config['batch_size'] = _BATCH.value
  return config, _TOPOLOGY.value


def _print(line: str) -> None:
  if not _JSON.value:
    print(line, flush=True)


def _stages(
  compiler: aot.AotCompiler, batch: int, n: int
) -> list[dict[str, Any]]:
  """Rows of the stages at that batch, up to the first that does not fit."""
  compiled = compiler.stages(batch)
  _print(f'\nbatch {batch}, {batch // n} per chip')
  rows: list[dict[str, Any]] = []
  while not rows or rows[-1]['fits']:
    with _stdout_to_stderr():
      row = next(compiled, None)
    if row is None:
      break
    _print(describe(row))
    rows.append(row)
  return rows


def body(argv: Sequence[str]) -> None:
  cli.refuse_arguments(argv)
  config, topology = _config_and_topology()
  with _stdout_to_stderr():  # before JAX initialises its backends
    chip, devices = topologies.slice_of(topology)
  # With the cache, compile_seconds would be the time of reading it.
  jax.config.update('jax_enable_compilation_cache', False)
  parsed, n = parse_config(config), len(devices)
  unit = n * parsed.grad_accum_steps
  net, batch = parsed.build(), parsed.batch_size
  if _ARCHITECTURE.value:
    path = paths.local('--architecture', _ARCHITECTURE.value)
    net = architecture.read_learned(path, net, parsed.image_shape)
  compiler = aot.AotCompiler(parsed, net, chip)
  images = compiler.inputs(1 if _LARGEST.value else batch).images
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
    _print(f'{parsed.network.name} on {n} chips ({topology})')
    if _LARGEST.value:
      stages = partial(_stages, compiler, n=n)
      report |= _report_largest(stages, batch, unit, images)
    else:
      report |= {'batch_size': batch, 'stages': _stages(compiler, batch, n)}
  if _JSON.value:
    print(json.dumps(report, indent=1))


if __name__ == '__main__':
  cli.main(body, FLAGS)
