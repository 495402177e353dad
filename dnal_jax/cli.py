"""What all commands share: flags, one message for a mistake, exit codes.

A command is a module with its own flags and a function:

  FLAGS = flags.FlagValues()
  _JSON = flags.DEFINE_bool('json', False, 'Print JSON.', flag_values=FLAGS)

  def body(argv): ...

  if __name__ == '__main__':
    cli.main(body, FLAGS)

Each has a FlagValues of its own, so that one process can import several of them
though they share the names of flags.
"""

from collections.abc import Callable, Sequence
import faulthandler
import re
import sys
import traceback
from typing import Any, NoReturn

from absl import flags, logging

from dnal_jax import errors, paths
from dnal_jax.config import RENAMED_KEYS
from dnal_jax.parallel import mesh, processes, signals, streams

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
  logging.get_absl_logger().addFilter(_is_not_of_orbax)
  sys.unraisablehook = _report_unraisable
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
    if '--help' in sys.argv[1:]:
      print(_help(body, flag_values))
    else:
      body(_parse(flag_values))
  except (errors.UserError, OSError) as error:
    print(f'error: {error}', file=sys.stderr)
    sys.exit(USER_ERROR)
  except errors.Stopped as stopped:
    print(stopped, file=sys.stderr)
    sys.exit(errors.AGAIN)
  except KeyboardInterrupt:
    print('\ninterrupted; the same command goes on from the last checkpoint')
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


def config_of(flag: flags.FlagHolder) -> dict[str, Any] | None:
  """The config that a --config flag names, as nested dicts; None if none.

  Raises:
    UserError: the file cannot be read.
  """
  if not flag.value:
    return None
  try:
    return flag.value.to_dict()
  except OSError as error:  # ml_collections reads the file on first use
    raise errors.UserError(
      f'--config cannot be read: {str(error).splitlines()[-1].strip()}'
    ) from error


def _parse(flag_values: flags.FlagValues) -> Sequence[str]:
  """The arguments that are not flags; raises UserError if it cannot parse."""
  try:
    return flag_values([_with_home(argument) for argument in sys.argv])
  except flags.Error as error:
    lines = str(error).strip().splitlines()
    if 'Traceback (most recent call last):' in lines:  # of the config file
      lines = [lines[0], lines[-1]]
      if "No module named 'configs'" in lines[-1]:
        lines.append("; run this from the project's root")
    raise errors.UserError(' '.join(lines)) from error
  except Exception as error:  # a config file may raise anything
    if isinstance(error, RuntimeError | AssertionError):
      mesh.check_platforms()  # JAX raises these when it registers a network
    message = str(error).replace('\\n', ' ').replace("\\'", "'").strip('\'" ')
    # The message of ml_collections for an override of a key that is missing.
    unknown = re.fullmatch(r"'?(\w+)'?( Did you mean .*)?", message)
    if isinstance(error, AttributeError) and unknown:
      hint = unknown[2] or ' The config file has no such key there.'
      if unknown[1] in RENAMED_KEYS:
        hint = f" Did you mean '{RENAMED_KEYS[unknown[1]]}'?"
      message = f"unknown config key '{unknown[1]}'.{hint}"
    else:
      message = f'{type(error).__name__}: {message}'
    raise errors.UserError(message) from error


def _with_home(argument: str) -> str:
  """Shells leave the ~ of --config=~/FILE alone, and ml_collections would open
  that file."""
  flag, _, value = argument.partition('=')
  if flag in ('--config', '-config') and value:
    return f'{flag}={paths.local("--config", value)}'
  return argument


def _help(body: Callable[..., None], flag_values: flags.FlagValues) -> str:
  """The docstring of the command's module, and its flags."""
  module = sys.modules[body.__module__]
  lines = [(module.__doc__ or '').strip(), '', 'flags:']
  for name in sorted(flag_values):
    lines.append(f'  --{name}: {flag_values[name].help}')
  return '\n'.join(lines)


def _is_not_of_orbax(record: Any) -> bool:
  """Orbax logs each error that it raises, and a run that reads the checkpoint
  before a damaged one reports that itself."""
  return '/orbax/' not in record.pathname


def _report_unraisable(unraisable: Any) -> None:
  """Python's own hook, but silent about tensorstore's threads: after a save has
  failed, each of its other writes finds orbax's event loop closed, hundreds of
  times."""
  error = unraisable.exc_value
  if not (
    isinstance(error, RuntimeError) and str(error) == 'Event loop is closed'
  ):
    sys.__unraisablehook__(unraisable)
