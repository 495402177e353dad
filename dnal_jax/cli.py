"""How a command of ours starts, and how it tells a mistake."""

from collections.abc import Callable, Sequence
import re
import sys
import traceback
from typing import Any, NoReturn

from absl import app, flags, logging

from dnal_jax import errors
from dnal_jax.config import RENAMED_KEYS
from dnal_jax.parallel import processes


def run(
  body: Callable[[Sequence[str]], None], *, arguments: bool = False
) -> None:
  """`app.run(body)`, but a user's mistake is one message and exit code 2.

  `body` is given the command's name, and with `arguments` what else is no flag.
  """
  try:
    app.define_help_flags()
    flags.FLAGS.set_gnu_getopt(arguments)  # flags may come behind them
    argv = flags.FLAGS(sys.argv)
  except flags.Error as error:
    lines = str(error).strip().splitlines()
    if 'Traceback (most recent call last):' in lines:  # of the config file
      lines = [lines[0], lines[-1]]
      if "No module named 'configs'" in lines[-1]:
        lines.append("; run this from the project's root")
    _give_up(' '.join(lines))
  except Exception as error:  # whatever a config file raises
    told = str(error).replace('\\n', ' ').replace("\\'", "'").strip('\'" ')
    # This is how ml_collections says that an override's key is not there.
    unknown = re.fullmatch(r"'?(\w+)'?( Did you mean .*)?", told)
    if isinstance(error, AttributeError) and unknown:
      hint = unknown[2] or ' The config file has no such key there.'
      if unknown[1] in RENAMED_KEYS:
        hint = f" Did you mean '{RENAMED_KEYS[unknown[1]]}'?"
      _give_up(f"unknown config key '{unknown[1]}'.{hint}")
    _give_up(f'{type(error).__name__}: {told}')
  if len(argv) > 1 and not arguments:
    _give_up(f"unexpected argument '{argv[1]}'; flags are --key=value")
  try:
    logging.set_verbosity(logging.ERROR)  # tfds is talkative
    # Orbax logs, by this logger, all that it raises, too.
    flags.FLAGS.logger_levels = {'absl': 'CRITICAL'}
    sys.unraisablehook = _tell_unraisable
    app.run(body, argv=argv)
  except (errors.UserError, OSError) as error:
    _give_up(error)
  except errors.Stopped as stopped:
    print(stopped, file=sys.stderr)
    processes.exit_now(errors.AGAIN)
  except KeyboardInterrupt:
    print('\ninterrupted; the same command goes on from the last checkpoint')
    processes.exit_now(130)
  except Exception:
    traceback.print_exc()
    processes.exit_now(1)


def config_of(flag: flags.FlagHolder) -> dict[str, Any] | None:
  """The config that a --config flag names, as nested dicts; None if none.

  Raises:
    UserError: the file cannot be read.
  """
  if not flag.value:
    return None
  try:
    return flag.value.to_dict()
  except OSError as error:  # ml_collections tells it on first use only
    raise errors.UserError(
      f'--config cannot be read: {str(error).splitlines()[-1].strip()}'
    ) from error


def _tell_unraisable(unraisable: Any) -> None:
  """Python's own hook, but silent about tensorstore's threads: once a save has
  failed, each of its other writes finds orbax gone, hundreds of times."""
  error = unraisable.exc_value
  if not (
    isinstance(error, RuntimeError) and str(error) == 'Event loop is closed'
  ):
    sys.__unraisablehook__(unraisable)


def _give_up(message: object) -> NoReturn:
  print(f'error: {message}', file=sys.stderr)
  processes.exit_now(2)
