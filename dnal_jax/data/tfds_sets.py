"""Data sets of tensorflow-datasets: their directory and their preparation."""

from collections.abc import Iterable
import contextlib
import hashlib
import json
import os
import pathlib
import queue
import threading
import time
from typing import Any
import urllib.parse

from dnal_jax import errors, paths
from dnal_jax.data.crops import import_tensorflow
from dnal_jax.parallel import streams

# What to do about damage.
AGAIN = 'delete the data set and prepare it again'
_ANSWER = 10  # seconds in which a host has to answer
# Archives that tensorflow-datasets cannot download: the user has to.
_BY_HAND = {
  'imagenet2012': ('ILSVRC2012_img_train.tar', 'ILSVRC2012_img_val.tar')
}


def root(name: str, directory: str | None) -> str:
  """The directory of prepared data sets: `directory` (data.dir) if given, else
  TFDS_DATA_DIR, else ~/tensorflow_datasets. Either may be a URL that
  tensorflow-datasets reads.

  Raises:
    UserError: the directory does not exist.
  """
  given = directory or os.environ.get('TFDS_DATA_DIR')
  if not given:
    default = '~/tensorflow_datasets'
    return str(paths.local('TFDS_DATA_DIR is not set; its default', default))
  if '://' in given:
    return given
  key = 'data.dir' if directory else 'TFDS_DATA_DIR'
  path = paths.local(key, given)
  if not path.is_dir():
    raise errors.UserError(
      f"{key} is '{given}', which is not a directory; create it, or name the"
      f' one that holds {name}/'
    )
  return str(path)


def digest(info: pathlib.Path) -> str:
  """A digest of dataset_info.json, which differs between versions of a data
  set."""
  return hashlib.sha256(info.read_bytes()).hexdigest()[:16]


def prepared(name: str, directory: str | None) -> Any:
  """The builder of a data set, which is downloaded and prepared if need be.

  Raises:
    UserError: there is no such data set, or it cannot be prepared; says how.
  """
  where = root(name, directory)
  builder = _builder(name, where)
  if builder.is_prepared():
    return builder
  if builder.data_path.is_dir():
    raise _incomplete_error(builder.data_path)
  if name in _BY_HAND:
    raise errors.UserError(
      f"data set '{name}' is not prepared in '{where}'. Get"
      f' {" and ".join(_BY_HAND[name])} from image-net.org, then: python -m'
      f' dnal_jax.prepare --dataset={name} --data_dir={where} --manual_dir=TARS'
    )
  _download(builder, where)
  return builder


def prepare(
  name: str, directory: str | None, manual: str | None
) -> pathlib.Path:
  """Prepares a data set, from archives in `manual` if it needs them, and
  returns its directory.

  Raises:
    UserError: an archive is missing, or preparing fails.
  """
  where = root(name, directory)
  tars = paths.local('--manual_dir', manual) if manual else None
  builder = _builder(name, where)
  if builder.is_prepared():
    return builder.data_path
  if name in _BY_HAND:
    if tars is None:
      key = '--manual_dir is not set; its default'
      tars = paths.local(key, f'{where}/downloads/manual')
    lacking = [file for file in _BY_HAND[name] if not (tars / file).exists()]
    if lacking:
      raise errors.UserError(
        f"'{tars}' lacks {' and '.join(lacking)}, which you have to"
        ' download; put both archives there, or name another --manual_dir. For'
        ' images of your own, set data.folder'
      )
  _download(builder, where, None if tars is None else str(tars))
  return builder.data_path


def _builder(name: str, where: str) -> Any:
  import_tensorflow()
  try:
    streams.quiet_tensorflow()
    import tensorflow_datasets as tfds
  except ImportError as error:
    raise errors.UserError(
      f"data set '{name}' is read by tensorflow-datasets, which does not"
      f' import here ({error}); {errors.INSTALL_TRAIN}'
    ) from error
  try:
    return tfds.builder(name, data_dir=where)
  except tfds.core.DatasetNotFoundError as error:
    if pathlib.Path(where, name).is_dir():
      raise _incomplete_error(pathlib.Path(where, name)) from error
    hint = errors.did_you_mean(name, ['digits', *tfds.list_builders()])
    raise errors.UserError(f"data.name is '{name}'{hint}") from error
  except Exception as error:  # of its version, its config, or what files say
    raise _opening_error(name, where, error) from error


def _incomplete_error(directory: os.PathLike) -> errors.UserError:
  return errors.UserError(
    f"'{directory}' is no prepared data set: a file such as dataset_info.json"
    f' or features.json is missing; {AGAIN}'
  )


def _opening_error(name: str, where: str, error: Exception) -> errors.UserError:
  """The error for a data set that tensorflow-datasets cannot open; names the
  damaged file, if one is."""
  if '://' in where:
    return errors.UserError(
      f"data set '{name}' cannot be read from '{where}' ({_line(error)}); name"
      ' a URL that TensorFlow can read, or a local directory'
    )
  directory = pathlib.Path(where, name.split(':')[0])
  for file in sorted(directory.rglob('*.json')):
    try:
      json.loads(file.read_bytes())
    except (OSError, ValueError):
      return errors.UserError(f"'{file}' is damaged; {AGAIN}")
  return errors.UserError(
    f"data set '{name}' in '{where}' cannot be opened: {_line(error)}"
  )


def _download(builder: Any, where: str, manual: str | None = None) -> None:
  streams.quiet_tensorflow()
  import tensorflow_datasets as tfds

  not_prepared = f"data set '{builder.name}' is not prepared in '{where}'"
  config = tfds.download.DownloadConfig(manual_dir=manual)
  try:
    if builder.MANUAL_DOWNLOAD_INSTRUCTIONS:
      print(f'{not_prepared}; preparing it', flush=True)
    else:
      print(f'{not_prepared}; downloading it', flush=True)
      _check_network(_archives(builder, where))
    builder.download_and_prepare(download_config=config)
  except Exception as error:  # network, disk, checksums: tfds has no one type
    raise errors.UserError(
      f'{not_prepared} and could not be ({_line(error)}); set TFDS_DATA_DIR or'
      ' data.dir to a directory that holds it'
    ) from error


def _archives(builder: Any, where: str) -> list[str]:
  """URLs of what tensorflow-datasets would have to download."""
  folder = pathlib.Path(where) / 'downloads'
  # tensorflow-datasets writes one beside each file that it has downloaded.
  infos = [*folder.glob('*.INFO'), *folder.glob('*/*.INFO')]
  done = '\n'.join(info.read_text() for info in infos)
  return [url for url in builder.url_infos or () if f'"{url}"' not in done]


def _check_network(urls: Iterable[str]) -> None:
  """Returns once the host of one of the URLs answers, whatever it answers.

  Without a network, tensorflow-datasets would try for minutes.

  Raises:
    ConnectionError: none has answered within `_ANSWER` seconds.
  """
  hosts = {urllib.parse.urlsplit(u).netloc: u for u in urls if u[:4] == 'http'}
  answers = queue.SimpleQueue()
  for url in hosts.values():
    # Daemons, as looking up a name may take longer, and cannot be stopped.
    threading.Thread(target=_ask, args=(url, answers), daemon=True).start()
  deadline = time.monotonic() + _ANSWER
  error = f'none within {_ANSWER} s'
  for _ in hosts:
    with contextlib.suppress(queue.Empty):
      error = answers.get(timeout=max(deadline - time.monotonic(), 0))
    if error is None:
      return
  if hosts:
    raise ConnectionError(
      f'no answer from {", ".join(hosts)}: {error}; is there a network?'
    )


def _ask(url: str, answers: queue.SimpleQueue) -> None:
  """Puts None if the host answers, else why not."""
  import requests

  try:
    requests.get(url, stream=True, timeout=_ANSWER).close()
    answers.put(None)
  except requests.RequestException as error:
    answers.put(type(error).__name__)


def _line(error: Exception) -> str:
  return (str(error).strip().splitlines() or [type(error).__name__])[0]
