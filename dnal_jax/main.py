"""Command line of a run: flags, then one call.

python -m dnal_jax.main --config=configs/quickstart.py --workdir=runs/demo

Exit codes: 0 finished, 2 a mistake of the user's, 75 stopped before the end, by
a signal, a save that does not end, or the loss of another process: the same
command goes on.
"""

from collections.abc import Sequence
import os
import pathlib
import shlex
import sys

from absl import flags
import jax
from ml_collections import config_flags

from dnal_jax import cli, errors, train
from dnal_jax.config import parse_config
from dnal_jax.data import cache
from dnal_jax.parallel import processes
from dnal_jax.workdir import result_file

_CONFIG = config_flags.DEFINE_config_file('config', None, 'The run, a file.')
_WORKDIR = flags.DEFINE_string(
  'workdir', None, 'Folder of the run; resumed if it holds one already.'
)
_DISTRIBUTED = flags.DEFINE_enum(
  'distributed',
  'auto',
  ('auto', 'on', 'off'),
  'Whether this is one of several processes (README, "Several hosts").',
)
_COORDINATOR = flags.DEFINE_string(
  'coordinator_address', None, 'HOST:PORT of the first of several processes.'
)
_PROCESSES = flags.DEFINE_integer('num_processes', None, 'How many there are.')
_PROCESS = flags.DEFINE_integer('process_id', None, 'Which this is, from 0.')


def main(argv: Sequence[str]) -> None:
  del argv
  _keep_compiled()
  config = cli.config_of(_CONFIG)
  if config is None or not _WORKDIR.value:
    raise errors.UserError(
      'both --config=configs/NAME.py and --workdir=DIR must be given'
    )
  processes.join(
    _DISTRIBUTED.value,
    coordinator_address=_COORDINATOR.value,
    num_processes=_PROCESSES.value,
    process_id=_PROCESS.value,
  )
  workdir = pathlib.Path(_WORKDIR.value)
  result = train.run(parse_config(config), config, workdir)
  print(result_file.closing_table(result))
  architecture = shlex.quote(f'--architecture={workdir}/architecture.json')
  print(
    f'\nnext: {sys.executable} -m dnal_jax.summary {architecture}'
    f"\n      or, in Python, net, variables = dnal_jax.load('{workdir}')"
  )


def _keep_compiled() -> None:
  """Has JAX keep compiled programs for the next start, in the user's cache;
  a folder that JAX was told by its own settings stays."""
  if jax.config.values['jax_compilation_cache_dir'] is not None:
    return
  folder = cache.path('compiled')
  try:
    folder.mkdir(parents=True, exist_ok=True)
  except OSError as error:
    print(f"no cache in '{folder}' ({error.strerror}); compiling anew next")
    return
  jax.config.update('jax_compilation_cache_dir', str(folder))
  if 'JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS' not in os.environ:
    jax.config.update('jax_persistent_cache_min_compile_time_secs', 0.2)


if __name__ == '__main__':
  cli.run(main)
