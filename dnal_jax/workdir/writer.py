"""What a run leaves in its folder beside checkpoints.

All processes call a writer alike; that of the primary one writes, and as long
as it is open, no other run can use the folder.
"""

from collections.abc import Iterator, Mapping, Sequence
import contextlib
import pathlib
from typing import Any, Protocol

import jax

from dnal_jax import errors, nn
from dnal_jax.config import RunConfig
from dnal_jax.data.contents import Contents
from dnal_jax.data.preprocessing import Preprocessing
from dnal_jax.graph import surgery
from dnal_jax.parallel import processes
from dnal_jax.training.hooks import Hook
from dnal_jax.workdir import (
  architecture,
  checksums,
  data_file,
  json_files,
  layout,
  lock,
  parent,
  tensorboard,
  weights,
)
from dnal_jax.workdir.metrics_file import MetricsFile
from dnal_jax.workdir.status_file import StatusFile


class Writer(Protocol):
  """Writes files of one run.

  Raises:
    UserError: from every method, if the folder cannot be written or another
      process has taken it over.
  """

  def hooks(self, epochs_done: int) -> list[Hook]:
    """Those that write while the run goes on from `epochs_done` epochs."""
    ...

  def check(self) -> None:
    """Raises UserError if the folder is another process's by now."""
    ...

  def write_architecture(self, keep: nn.Keep) -> None:
    """The channels that are left."""
    ...

  def write_warmup(self, variables: surgery.Variables, keep: nn.Keep) -> None:
    """The network with which the search begins, as a folder of its own that
    `load` reads; `keep` are all its channels."""
    ...

  def write_result(
    self, variables: surgery.Variables, result: Mapping[str, Any]
  ) -> None:
    """The final network and, last of all, as the sign of a finished run, its
    figures."""
    ...


@contextlib.contextmanager
def open_writer(
  config: RunConfig,
  config_dict: Mapping[str, Any],
  workdir: pathlib.Path,
  contents: Contents,
  steps_per_epoch: int,
) -> Iterator[Writer]:
  """Locks the folder for this run, and writes its config.json and data.json if
  it is new.

  Raises:
    UserError: in all processes; the folder is of another config or other data,
      in use, cannot be written, or is not shared by all processes.
  """

  def open_files() -> Writer:
    held = stack.enter_context(lock.Lock(workdir))
    layout.check_config(workdir, config_dict)  # once more: it is locked now
    layout.write_config(workdir, config_dict)
    data_file.check_or_write(workdir, config.data.title, contents)
    status = StatusFile(config, workdir, held, steps_per_epoch)
    stack.enter_context(status)
    return _PrimaryWriter(config, workdir, contents.class_names, status)

  with contextlib.ExitStack() as stack:
    writer = processes.run_on_primary(open_files)
    processes.check_shared_file(workdir / 'config.json')
    yield writer or _NullWriter()


class _NullWriter:
  """Of a process that does not write."""

  def hooks(self, epochs_done: int) -> list[Hook]:
    del epochs_done
    return []

  def check(self) -> None:
    pass

  def write_architecture(self, keep: nn.Keep) -> None:
    pass

  def write_warmup(self, variables: surgery.Variables, keep: nn.Keep) -> None:
    pass

  def write_result(
    self, variables: surgery.Variables, result: Mapping[str, Any]
  ) -> None:
    pass


class _PrimaryWriter(Hook):
  """The writer of the primary process. As a hook, it hands the end of an epoch,
  and nothing else, to the files that have a row or events for it, after it has
  checked that the folder is still its own."""

  def __init__(
    self,
    config: RunConfig,
    workdir: pathlib.Path,
    class_names: Sequence[str],
    status: StatusFile,
  ):
    self._config, self._workdir, self._status = config, workdir, status
    self._class_names = class_names
    self._epoch_files: list[Hook] = []

  def hooks(self, epochs_done: int) -> list[Hook]:
    with self._reporting_disk_errors():
      self._epoch_files = [MetricsFile(self._workdir, epochs_done)]
      if self._config.tensorboard and tensorboard.installed():
        self._epoch_files.append(tensorboard.TensorBoard(self._workdir))
    return [self, self._status]

  def end_epoch(self, row: Mapping[str, Any], gates: Mapping[str, Any]) -> None:
    self.check()
    with self._reporting_disk_errors():
      for file in self._epoch_files:
        file.end_epoch(row, gates)

  def check(self) -> None:
    self._status.check_lock()

  def write_architecture(self, keep: nn.Keep) -> None:
    self.check()
    with self._reporting_disk_errors():
      self._write_architecture(self._workdir, keep)

  def write_warmup(self, variables: surgery.Variables, keep: nn.Keep) -> None:
    self.check()
    folder = self._workdir / parent.WARMUP
    with self._reporting_disk_errors():
      folder.mkdir(exist_ok=True)
      self._write_architecture(folder, keep)
      weights.write(folder, jax.device_get(variables))
      checksums.write(folder, ('architecture.json', weights.FILE))

  def _write_architecture(self, folder: pathlib.Path, keep: nn.Keep) -> None:
    network = self._config.network
    architecture.write(
      folder,
      network.name,
      network.width,
      self._class_names,
      Preprocessing.of(self._config.data),
      keep,
    )

  def write_result(
    self, variables: surgery.Variables, result: Mapping[str, Any]
  ) -> None:
    self.check()
    with self._reporting_disk_errors():
      weights.write(self._workdir, jax.device_get(variables))
      checksums.write(
        self._workdir,
        ('architecture.json', data_file.NAME, weights.FILE),
        soon={'result.json': json_files.encode(result)},
      )
      json_files.write_json(self._workdir / 'result.json', result)

  @contextlib.contextmanager
  def _reporting_disk_errors(self) -> Iterator[None]:
    """Raises UserError for a disk that is full or not writable any more."""
    try:
      yield
    except OSError as error:
      raise errors.UserError(
        f"'{self._workdir}' cannot be written any more ({error.strerror}); mend"
        ' that, and the same command goes on from the last checkpoint'
      ) from error
