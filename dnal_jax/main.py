"""Runs a config in a folder, or resumes the run that the folder holds.

python -m dnal_jax.main --config=configs/quickstart.py --workdir=runs/demo

Exit codes: 0 finished; 2 an error that the user can fix; 75 stopped before the
end by a signal, a save that hangs, or the loss of another process: the same
command resumes; 130 interrupted before the run began; 1 any other error, with a
traceback.
"""

from dnal_jax.parallel import signals, streams

if __name__ == '__main__':  # before the other imports, which take seconds
  streams.prepare()
  signals.listen()

from collections.abc import Mapping, Sequence
import pathlib
import shlex
import sys
from typing import Any

from absl import flags

from dnal_jax import cli, errors, paths, train
from dnal_jax.config import RunConfig, parse_config
from dnal_jax.data import cache
from dnal_jax.models import zoo
from dnal_jax.parallel import compile_cache, processes
from dnal_jax.workdir import result_file

FLAGS = flags.FlagValues()
_CONFIG = cli.define_config(
  'Config file: configs/NAME.py, or configs/NAME.py:VARIANT.', FLAGS
)
_WORKDIR = flags.DEFINE_string(
  'workdir',
  None,
  'Run directory, for checkpoints, metrics and the result; the run that it'
  ' holds is resumed.',
  flag_values=FLAGS,
)
_UNIFORM = flags.DEFINE_bool(
  'uniform',
  False,
  'With a target: also train a network of the same cost that has the same share'
  ' of channels everywhere, for as many epochs, in DIR/uniform, and print its'
  ' accuracy beside.',
  flag_values=FLAGS,
)
_DISTRIBUTED = flags.DEFINE_enum(
  'distributed',
  'auto',
  ('auto', 'on', 'off'),
  'Whether this is one of several processes (multi-host training).',
  flag_values=FLAGS,
)
_COORDINATOR = flags.DEFINE_string(
  'coordinator_address',
  None,
  'HOST:PORT of the JAX coordinator, which is process 0.',
  flag_values=FLAGS,
)
_PROCESSES = flags.DEFINE_integer(
  'num_processes', None, 'Number of processes of the run.', flag_values=FLAGS
)
_PROCESS = flags.DEFINE_integer(
  'process_id', None, 'Index of this process, from 0.', flag_values=FLAGS
)


def body(argv: Sequence[str]) -> None:
  cli.refuse_arguments(argv)
  compile_cache.keep_in(cache.path('compiled'))
  config = cli.config_of(_CONFIG)
  if config is None or not _WORKDIR.value:
    raise errors.UserError(
      'both --config=configs/NAME.py and --workdir=DIR must be given'
    )
  workdir = paths.local('--workdir', _WORKDIR.value)
  processes.join(
    _DISTRIBUTED.value,
    coordinator_address=_COORDINATOR.value,
    num_processes=_PROCESSES.value,
    process_id=_PROCESS.value,
  )
  parsed = parse_config(config)
  uniform = _uniform_config(parsed) if _UNIFORM.value else None
  result = train.run(parsed, config, workdir)
  print(result_file.closing_table(result))
  if uniform is not None:
    print()
    found = train.run(parse_config(uniform), uniform, workdir / 'uniform')
    print(_beside(result, found))
  print(_next_commands(workdir, result['network']))


def _uniform_config(run: RunConfig) -> dict[str, Any]:
  """Of the uniformly narrower network that is trained beside a run.

  Raises:
    UserError: the run has no target, or its config no variant for this.
  """
  if not any(stage.target for stage in run.stages):
    raise errors.UserError(
      '--uniform is for a run with a target, such as --config.target.macs=0.5'
    )
  config = cli.config_of_variant('uniform')
  config['epochs_scale'] = 1.0
  epochs = sum(stage.epochs for stage in run.stages)
  config['stages']['baseline']['epochs'] = epochs
  return config


def _beside(result: Mapping[str, Any], uniform: Mapping[str, Any]) -> str:
  """The accuracies of both, on test and validation."""
  lines = []
  for name, one in (('searched', result), ('uniform', uniform)):
    final, test = one['top1']['final'], one['test_top1']
    lines.append(
      f'{name:10}{one["learned"]["macs"]:>9,} macs'
      f'{one["learned"]["params"]:>8,} params   validation'
      f' {result_file.percent(final)}   test {result_file.percent(test)}'
    )
  return '\n'.join(lines)


def _next_commands(workdir: pathlib.Path, network: str) -> str:
  path, first = workdir.absolute(), ''
  folder = shlex.quote(str(path))
  if network not in zoo.NETWORKS:  # the config file registers it
    given = next(a for a in sys.argv if a.lstrip('-').startswith('config='))
    file = given.partition('=')[2].partition(':')[0]
    if file.endswith('.py'):
      file = str(paths.local('--config', file).absolute())
    folder += f' {shlex.quote(f"--config={file}")}'
    first = f'dnal_jax.config.read_config({file!r}); '
  return (
    f'\nnext: {sys.executable} -m dnal_jax.summary {folder}'
    f'\n      {sys.executable} -m dnal_jax.predict {folder} FILE...'
    f'\n      or, in Python, import dnal_jax.config;'
    f" {first}model = dnal_jax.load('{path}')"
  )


if __name__ == '__main__':
  cli.main(body, FLAGS)
