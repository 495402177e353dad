"""Reads config files: Python files that define get_config()."""

from collections.abc import Iterator
import contextlib
import pathlib
import runpy
import sys
import traceback

from ml_collections import ConfigDict

from dnal_jax import errors, paths
from dnal_jax.parallel import mesh

_PACKAGE = pathlib.Path(__file__).parents[1]


def read_config(name: str) -> ConfigDict:
  """The config that the get_config() of a file returns.

  Args:
    name: 'PATH/FILE.py', or 'NAME' for the configs/NAME.py of dnal_jax. With
      ':VARIANT' behind it, the variant is what get_config is called with.

  What the file imports from `configs` is looked for in the folder `configs`
  that the file is in, then where Python looks.

  Raises:
    UserError: the file is missing or fails, or returns no config; says where.
  """
  file, *variant = name.split(':', 1)
  path = _path(file)
  try:
    with _importing_from_its_project(path):
      return _load(path, *variant)
  except Exception as error:  # the file may raise anything
    if isinstance(error, RuntimeError | AssertionError):
      mesh.check_platforms()  # JAX raises these when it registers a network
    raise errors.UserError(
      f"config '{name}' cannot be read: {_reason(error, path)}"
    ) from error


def _path(file: str) -> pathlib.Path:
  """Raises UserError if there is no such file."""
  if file and '/' not in file and not file.endswith('.py'):
    ours = {path.stem: path for path in _ours().glob('*.py')}
    if file not in ours:
      hint = errors.did_you_mean(file, sorted(ours))
      raise errors.UserError(
        f"dnal_jax has no config '{file}'{hint}; a config of your own is given"
        ' by its path, FILE.py'
      )
    return ours[file]
  path = paths.local('--config', file)
  if not path.is_file():
    near = [str(other) for other in path.parent.glob('*.py')]
    hint = errors.did_you_mean(file, near) if near else ''
    hint += (
      '; give the path of a file, or the name of a config of dnal_jax without'
      " '.py'"
    )
    raise errors.UserError(f"there is no config file '{file}'{hint}")
  return path


def _ours() -> pathlib.Path:
  """The folder of the project's own configs: beside the package in a clone, and
  in it where it was installed from a wheel."""
  installed = _PACKAGE / 'configs'
  return installed if installed.is_dir() else _PACKAGE.parent / 'configs'


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
  if variant and variant[0] and config == get_config():
    raise ValueError(
      f"get_config ignores the variant '{variant[0]}'; pass it on, as in"
      " read_config(f'NAME:{variant}')"
    )
  return config


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
