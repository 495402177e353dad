"""What all commands share: flags, one message for a mistake, exit codes.

A command is a module with its own flags and a function:

  FLAGS = flags.FlagValues()
  _CONFIG = cli.define_config('File of the run.', FLAGS)
  _JSON = flags.DEFINE_bool('json', False, 'Print JSON.', flag_values=FLAGS)

  def body(argv): ...

  if __name__ == '__main__':
    cli.main(body, FLAGS)

Each has a FlagValues of its own, so that one process can import several of them
though they share the names of flags.
"""

from collections.abc import Callable, Sequence
import contextlib
import faulthandler
import re
import shlex
import sys
import textwrap
import traceback
from typing import Any, NoReturn

from absl import flags, logging
from ml_collections import ConfigDict, config_flags

import dnal_jax
from dnal_jax import errors
from dnal_jax.config import keys, read_config
from dnal_jax.parallel import processes, signals, streams

_OVERRIDES = f"""
A flag --config.KEY=VALUE behind --config=FILE overrides a value of the config:
  --config.seed=1  --config.batch_size=64  --config.network.width=0.5
  --config.penalty=1e-4  --config.stages.search.epochs=5
--config=FILE {keys.LIST_FLAG} lists all that can be overridden, with the
values that they have."""

# Python's words for a flag's value of the wrong type, and plain ones.
_WRONG_TYPE = (
  (
    r"flag --config\.([\w.]+)=.*: Failed to parse '(.*)' as a ConfigDict.*",
    r"--config.\1 is a group of keys, and '\2' is one value: set one of them,"
    r' --config.\1.KEY=\2',
  ),
  (
    r"Unknown command line flag '(config\..*)'",
    r'--config=FILE is missing, of which --\1 changes a value',
  ),
  (
    r"Unknown command line flag '(\w+\.[\w.]+)'.*",
    r'there is no flag --\1; did you mean --config.\1?',
  ),
  (r'invalid literal for int\(\) with base 10: (.*)', r'\1 is not an integer'),
  (
    r'could not convert string to float: (.*)',
    r'\1 is not a number, such as 0.5 or 3e6',
  ),
)
_OVERRIDE = re.compile(r'--?(?:no)?config\.([^=]+)')

USER_ERROR = 2
INTERRUPTED = 130


def main(
  body: Callable[[Sequence[str]], None], flag_values: flags.FlagValues
) -> NoReturn:
  """`run` as the main program of a process.

  Ends the process at once where `run` has failed: threads of orbax may wait for
  a disk, and JAX's runtime for processes that no longer exist.
  """
  streams.prepare()
  signals.obey_as_process_1()
  faulthandler.enable()
  flags.FLAGS.mark_as_parsed()  # of absl and other libraries, as they are
  logging.use_absl_handler()
  logging.set_verbosity(logging.ERROR)  # tensorflow-datasets logs much
  streams.quiet_orbax()
  try:
    run(body, flag_values)
  except SystemExit as end:
    if isinstance(end.code, int) and end.code:
      processes.exit_now(end.code)
    raise


def run(
  body: Callable[[Sequence[str]], None], flag_values: flags.FlagValues
) -> NoReturn:
  """Parses `sys.argv` and calls `body` with the arguments that are not flags,
  of which the first is the command's name.

  Raises:
    SystemExit: in any case, with code 0; USER_ERROR after a UserError or an
      OSError, of which the message alone is printed; errors.AGAIN after
      Stopped; INTERRUPTED after KeyboardInterrupt; or 1 after any other
      exception, with its traceback.
  """
  try:
    if {'--help', '-h'} & {*sys.argv[1:]}:
      print(_help(body, flag_values))
    elif '--version' in sys.argv[1:]:
      print(f'dnal_jax {dnal_jax.__version__}')
    elif 'config' in flag_values and keys.LIST_FLAG in sys.argv[1:]:
      _parse(flag_values)
      print(_overrides(config_of(flag_values['config'])))
    else:
      body(_parse(flag_values))
  except (errors.UserError, OSError) as error:
    print(f'error: {error}', file=sys.stderr)
    sys.exit(USER_ERROR)
  except errors.Stopped as stopped:
    print(stopped, file=sys.stderr)
    sys.exit(errors.AGAIN)
  except KeyboardInterrupt:
    print('\ninterrupted', file=sys.stderr)
    sys.exit(INTERRUPTED)
  except Exception:
    traceback.print_exc()
    sys.exit(1)
  sys.exit(0)


def refuse_arguments(argv: Sequence[str]) -> None:
  """Raises UserError if there are arguments that are not flags."""
  if len(argv) > 1:
    raise errors.UserError(
      f"unexpected argument '{argv[1]}'; flags are --key=value"
    )


def define_config(
  description: str, flag_values: flags.FlagValues
) -> flags.FlagHolder:
  """Defines --config, whose values `read_config` reads, and flags --config.KEY
  that override values of the config."""
  flag = config_flags.DEFINE_config_file(
    'config', None, description, flag_values=flag_values
  )
  # ml_collections' own parser reports what goes wrong in the file late or with
  # a traceback.
  flag_values['config'].parser = _ConfigParser()
  return flag


def config_of(flag: Any) -> dict[str, Any] | None:
  """The config that a --config flag names, as nested dicts; None if none."""
  return None if flag.value is None else flag.value.to_dict()


def config_of_variant(variant: str) -> dict[str, Any]:
  """Another variant of the config that --config names, with the same flags that
  override its values, as nested dicts.

  Raises:
    UserError: a flag names a key that the variant does not have.
  """
  flag_values = flags.FlagValues()
  flag = define_config('', flag_values)
  given = [a for a in sys.argv[1:] if re.match(r'--?config[.=]', a)]
  given = [
    re.sub(r'^(--?config=[^:]*).*', rf'\1:{variant}'.rstrip(':'), argument)
    for argument in given
  ]
  flag_values([sys.argv[0], *given])
  config = config_of(flag)
  assert config is not None
  return config


class _ConfigParser(flags.ArgumentParser):
  """From the value of --config to a ConfigDict that has what flags override."""

  def parse(self, argument: str) -> ConfigDict:
    """A flag for a target chooses the variant that has one.

    Raises:
      UserError: there is no such config, or a flag names a key that it does not
        have.
    """
    matches = (_OVERRIDE.match(flag) for flag in sys.argv[1:])
    overridden = [match[1] for match in matches if match]
    config = None
    if ':' not in argument and any(k.startswith('target.') for k in overridden):
      with contextlib.suppress(errors.UserError):  # a file without variants
        config = read_config(f'{argument}:target')
    config = config or read_config(argument)
    for key in overridden:
      keys.check_key(config.to_dict(preserve_field_references=True), key)
    return config.lock()


def _overrides(config: dict[str, Any] | None) -> str:
  """All flags --config.KEY=VALUE that change a config, with its own values."""
  if config is None:
    raise errors.UserError(
      f'{keys.LIST_FLAG} lists the values of a config: give --config=FILE as'
      ' well'
    )
  return '\n'.join(
    shlex.quote(f'--config.{key}={value}')
    for key, value in keys.all_keys(config).items()
    if not isinstance(value, dict)
  )


def _parse(flag_values: flags.FlagValues) -> Sequence[str]:
  """The arguments that are not flags; raises UserError if it cannot parse."""
  try:
    return flag_values([a for a in sys.argv if a != keys.LIST_FLAG])
  except errors.UserError:
    raise
  except flags.Error as error:
    message = ' '.join(str(error).split())
    for pattern, words in _WRONG_TYPE:
      message = re.sub(pattern, words, message)
    raise errors.UserError(message) from error
  except Exception as error:  # of ml_collections, for --config.KEY
    raise errors.UserError(
      'a flag --config.KEY does not fit the config file'
      f' ({type(error).__name__}: {error})'
    ) from error


def _help(body: Callable[..., None], flag_values: flags.FlagValues) -> str:
  """The docstring of the command's module, its flags, and how a config is
  changed by flags."""
  module = sys.modules[body.__module__]
  lines = [(module.__doc__ or '').strip(), '', 'flags:']
  for name in flag_values:
    lines += textwrap.wrap(
      f'--{name}: {flag_values[name].help}',
      width=80,
      initial_indent=' ' * 2,
      subsequent_indent=' ' * 6,
    )
  return '\n'.join([*lines, _OVERRIDES * ('config' in flag_values)])
