"""What a run leaves in its folder beside checkpoints.

All processes call it with the same; the first one writes, and as long as it
does, the folder is no other run's.
"""

from collections.abc import Iterator, Mapping
import contextlib
from functools import partial
import pathlib
from typing import Any

import jax

from dnal_jax import errors, nn
from dnal_jax.config import RunConfig
from dnal_jax.cost import exact
from dnal_jax.graph import surgery
from dnal_jax.parallel import processes
from dnal_jax.training.prune import PrunableModel
from dnal_jax.workdir import (
  architecture,
  json_files,
  layout,
  lock,
  metrics_file,
  result_file,
  status_file,
  weights,
)
from dnal_jax.workdir.run_state import RunState


@contextlib.contextmanager
def claimed(
  settings: RunConfig,
  config: Mapping[str, Any],
  workdir: pathlib.Path,
  steps_per_epoch: int,
) -> Iterator[status_file.StatusFile]:
  """For the first process: the folder is of this config, locked while this is
  entered, and tells how far the run is.

  Raises:
    UserError: it is another's or in use, or cannot be written.
  """
  with lock.Lock(workdir) as held:
    layout.check_config(workdir, config)  # another may have been here meanwhile
    layout.write_config(workdir, config)
    with status_file.StatusFile(
      settings, workdir, held, steps_per_epoch
    ) as told:
      yield told


class Writer:
  """Progress, metrics, architecture, weights and result of one run.

  Raises:
    UserError: from whatever writes, if the folder cannot be written.
  """

  def __init__(
    self,
    settings: RunConfig,
    workdir: pathlib.Path,
    progress: status_file.StatusFile | None,  # None: not the first process
    position: RunState,  # where it begins or goes on
  ):
    self._settings, self._workdir = settings, workdir
    self._progress = progress
    self._metrics = None
    if processes.is_primary():
      with self._writing():
        self._metrics = metrics_file.Metrics(
          workdir, position.epochs_done, settings.tensorboard
        )

  def stage(self, index: int, done: int) -> None:
    """Stage `index` begins, or goes on behind so many of its steps."""
    if self._progress is not None:
      self._progress.stage(index, done)

  def steps(self, done: int, metrics: Mapping[str, Any]) -> None:
    """So many more steps done; metrics of the last of them."""
    if self._progress is not None:
      self._progress.steps(done, metrics)

  def epoch(self, row: metrics_file.Row, gates: Mapping[str, Any]) -> None:
    """A row of metrics; `gates` {path: values} become histograms."""
    if self._progress is not None and self._metrics is not None:
      self._progress.check()
      with self._writing():
        self._metrics.write(row, gates)
      self._progress.epoch(row['validation_top1'])

  def check(self) -> None:
    """Raises UserError if another process has the folder by now."""
    if self._progress is not None:
      self._progress.check()

  def architecture(self, keep: nn.Keep) -> None:
    """The channels that survive."""
    if not processes.is_primary():
      return
    self.check()
    network = self._settings.network
    with self._writing():
      architecture.write(
        self._workdir,
        network.name,
        network.width,
        self._settings.classes,
        self._settings.image_shape,
        keep,
      )

  def end(
    self,
    variables: surgery.Variables,
    network: PrunableModel,
    position: RunState,
    *,
    final: Mapping[str, float],
    test: Mapping[str, float],
  ) -> dict[str, Any]:
    """The final network, and last of all, as the sign of a finished run, its
    figures, which are returned; `final` and `test` are what it was measured
    at (`result_file.make_result`)."""
    pruned = bool(position.keep)
    if not pruned:
      self.architecture(network.known)
    count = partial(exact.count, image_shape=self._settings.image_shape)
    result = result_file.make_result(
      self._settings,
      position,
      baseline=count(network.full),
      learned=count(network.net) if pruned else None,
      gates=network.gates,
      kept=network.kept if pruned else None,
      final=final,
      test=test,
    )
    if processes.is_primary():
      self.check()
      with self._writing():
        weights.write(self._workdir, jax.device_get(variables))
        json_files.write_json(self._workdir / 'result.json', result)
    return result

  @contextlib.contextmanager
  def _writing(self) -> Iterator[None]:
    """Tells of a disk that is full, or may not be written any more."""
    try:
      yield
    except OSError as error:
      raise errors.UserError(
        f"'{self._workdir}' cannot be written any more ({error.strerror}); mend"
        ' that, and the same command goes on from the last checkpoint'
      ) from error
