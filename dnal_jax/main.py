"""Command line of a run: flags, then one call.

python -m dnal_jax.main --config=configs/quickstart.py --workdir=runs/demo
"""

from collections.abc import Sequence
import pathlib
import shlex
import sys

from absl import flags
from ml_collections import config_flags

from dnal_jax import cli, errors, report, settings, train

_CONFIG = config_flags.DEFINE_config_file('config', None, 'The run, a file.')
_WORKDIR = flags.DEFINE_string(
  'workdir', None, 'Folder of the run; resumed if it holds one already.'
)


def main(argv: Sequence[str]) -> None:
  del argv
  config = cli.config_of(_CONFIG)
  if config is None or not _WORKDIR.value:
    raise errors.UserError(
      'both --config=configs/NAME.py and --workdir=DIR must be given'
    )
  workdir = pathlib.Path(_WORKDIR.value)
  result = train.run(settings.parse(config), config, workdir)
  print(report.closing(result))
  architecture = shlex.quote(f'--architecture={workdir}/architecture.json')
  print(
    f'\nnext: {sys.executable} -m dnal_jax.summary {architecture}'
    f"\n      or, in Python, net, variables = dnal_jax.load('{workdir}')"
  )


if __name__ == '__main__':
  cli.run(main)
