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

from collections.abc import Sequence
import pathlib
import shlex
import sys

from absl import flags

from dnal_jax import cli, errors, paths, train
from dnal_jax.config import parse_config
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
  result = train.run(parse_config(config), config, workdir)
  print(result_file.closing_table(result))
  print(_next_commands(workdir, result['network']))


def _next_commands(workdir: pathlib.Path, network: str) -> str:
  folder, first = shlex.quote(str(workdir)), ''
  if network not in zoo.NETWORKS:  # the config file registers it
    given = next(a for a in sys.argv if a.lstrip('-').startswith('config='))
    folder += f' {shlex.quote(given)}'
    first = f'models.register({network!r}, ...), then '
  return (
    f'\nnext: {sys.executable} -m dnal_jax.predict {folder} IMAGES'
    f'\n      {sys.executable} -m dnal_jax.summary {folder}'
    f"\n      or, in Python, {first}model = dnal_jax.load('{workdir}')"
  )


if __name__ == '__main__':
  cli.main(body, FLAGS)
