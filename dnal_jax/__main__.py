"""dnal_jax: learn a small convolutional network out of a big one, in JAX.

usage: dnal COMMAND [flags], or python -m dnal_jax COMMAND [flags]
"""

import runpy
import sys

import dnal_jax
from dnal_jax import errors

# Command -> (its module, what it does).
COMMANDS = {
  'train': (
    'main',
    'run a config: warm-up, width search, pruning, fine-tuning',
  ),
  'status': ('status', 'show how far runs are'),
  'summary': ('summary', 'show the widths and the cost of a network'),
  'predict': ('predict', 'classify image files by the network of a run'),
  'compare': ('compare', 'compare ways to a small network at equal cost'),
  'prepare': ('prepare', 'download and convert a data set'),
  'dryrun': ('dryrun', 'compile a config for a TPU slice, without a TPU'),
}


def main() -> None:
  """Runs the command that the first argument names, as `python -m` would run
  its module: a run handles signals before it imports JAX."""
  name, *arguments = sys.argv[1:] or ['--help']
  if name in ('--help', '-h', 'help'):
    print(_help())
  elif name == '--version':
    print(f'dnal_jax {dnal_jax.__version__}')
  elif name in COMMANDS:
    sys.argv[1:] = arguments
    module = f'dnal_jax.{COMMANDS[name][0]}'
    runpy.run_module(module, run_name='__main__', alter_sys=True)
  else:
    hint = errors.did_you_mean(name, COMMANDS)
    print(f"error: unknown command '{name}'{hint}", file=sys.stderr)
    sys.exit(2)


def _help() -> str:
  lines = [(__doc__ or '').strip(), '', 'commands:']
  lines += [f'  {name:9}{text}' for name, (_, text) in COMMANDS.items()]
  modules = ', '.join(f'{module}' for module, _ in COMMANDS.values())
  return '\n'.join(
    [
      *lines,
      '',
      'dnal COMMAND --help lists the flags of a command, dnal --version prints',
      'the version. python -m dnal_jax.MODULE is the same as a command, for',
      f'MODULE of {modules}.',
    ]
  )


if __name__ == '__main__':
  main()
