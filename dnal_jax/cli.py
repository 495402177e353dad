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

from collections.abc import Callable, Iterator, Sequence
import contextlib
import faulthandler
import pathlib
import re
import runpy
import sys
import traceback
from typing import Any, NoReturn

from absl import flags, logging
from ml_collections import ConfigDict, config_flags

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


def define_config(
  description: str, flag_values: flags.FlagValues
) -> flags.FlagHolder:
  """Defines --config=FILE.py or FILE.py:VARIANT, and flags --config.KEY.

  Its file is found from any directory: what it imports from `configs` is looked
  for in the folder `configs` that the file is in, then where Python looks.
  """
  flag = config_flags.DEFINE_config_file(
    'config', None, description, flag_values=flag_values
  )
  # ml_collections' own parser reports what goes wrong in the file late or with
  # a traceback.
  flag_values['config'].parser = _ConfigParser()
  return flag


def config_of(flag: flags.FlagHolder) -> dict[str, Any] | None:
  """The config that a --config flag names, as nested dicts; None if none."""
  return None if flag.value is None else flag.value.to_dict()


class _ConfigParser(flags.ArgumentParser):
  """From FILE.py or FILE.py:VARIANT to the config that the file returns."""

  def parse(self, argument: str) -> ConfigDict:
    """Raises UserError if the file is missing or fails, or returns no config;
    says where."""
    file, *variant = argument.split(':', 1)
    path = paths.local('--config', file)
    if not path.is_file():
      known = [str(other) for other in path.parent.glob('*.py')]
      hint = '; give the path of a config file, such as PATH/configs/NAME.py'
      if known:
        hint = errors.did_you_mean(file, known)
      raise errors.UserError(f"there is no file --config='{file}'{hint}")
    try:
      with _importing_from_its_project(path):
        return _load(path, *variant)
    except Exception as error:  # the file may raise anything
      if isinstance(error, RuntimeError | AssertionError):
        mesh.check_platforms()  # JAX raises these when it registers a network
      raise errors.UserError(
        f"--config='{argument}' cannot be read: {_reason(error, path)}"
      ) from error


@contextlib.contextmanager
def _importing_from_its_project(path: pathlib.Path) -> Iterator[None]:
  """Inside, a config file imports as if the command had been started in the
  folder that its `configs` is in."""
  folders = [p for p in path.absolute().parents if p.name == 'configs']
  added = [str(folder.parent) for folder in folders[:1]]
  sys.path[:0] = added
  try:
    yield
  finally:
    for entry in added:
      sys.path.remove(entry)


def _load(path: pathlib.Path, *variant: str) -> ConfigDict:
  get_config = runpy.run_path(str(path)).get('get_config')
  if get_config is None:
    raise AttributeError('it must define get_config(), which returns a config')
  config = get_config(*variant)
  if not isinstance(config, ConfigDict):
    raise TypeError(f'get_config() must return a ConfigDict, not {config!r}')
  return config.lock()


def _reason(error: Exception, path: pathlib.Path) -> str:
  """The error of a config file, where it was raised, and the fix."""
  text = f'{type(error).__name__}: {" ".join(str(error).split())}'
  for frame in reversed(traceback.extract_tb(error.__traceback__)):
    file = pathlib.Path(frame.filename).absolute()
    if file.is_file() and file.parent == path.absolute().parent:
      text = f"{text} ('{file.name}', line {frame.lineno})"
      break
  if isinstance(error, ModuleNotFoundError):
    if str(error.name).partition('.')[0] == 'configs':
      return (
        f"{text}; keep the file in the folder 'configs' of its project, or run"
        ' this from the folder that holds that'
      )
    return f"{text}; install '{error.name}', or correct the import"
  return text


def _parse(flag_values: flags.FlagValues) -> Sequence[str]:
  """The arguments that are not flags; raises UserError if it cannot parse."""
  try:
    return flag_values(sys.argv)
  except errors.UserError:
    raise
  except flags.Error as error:
    raise errors.UserError(' '.join(str(error).split())) from error
  except Exception as error:  # of ml_collections, for --config.KEY
    message = str(error).replace('\\n', ' ').replace("\\'", "'").strip('\'" ')
    # The message of ml_collections for an override of a key that is missing.
    unknown = re.fullmatch(r"'?(\w+)'?( Did you mean .*)?", message)
    if isinstance(error, AttributeError | KeyError) and unknown:
      hint = unknown[2] or ' The config file has no such key there.'
      if unknown[1] in RENAMED_KEYS:
        hint = f" Did you mean '{RENAMED_KEYS[unknown[1]]}'?"
      message = f"unknown config key '{unknown[1]}'.{hint}"
    else:
      message = (
        'a flag --config.KEY does not fit the config file'
        f' ({type(error).__name__}: {error})'
      )
    raise errors.UserError(message) from error


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
