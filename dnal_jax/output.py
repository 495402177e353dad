"""What a run leaves in its folder beside checkpoints.

All processes call it with the same; the first one writes.
"""

from collections.abc import Mapping
import pathlib
from typing import Any

import jax

from dnal_jax import (
  architecture,
  compact,
  files,
  hosts,
  layers,
  report,
  weights,
)
from dnal_jax.settings import Settings


class Output:
  """Metrics, architecture, weights and result of one run (`folder.py`)."""

  def __init__(
    self, settings: Settings, workdir: pathlib.Path, epochs_done: int
  ):
    self._settings, self._workdir = settings, workdir
    self._metrics = None
    if hosts.first():
      self._metrics = report.Metrics(workdir, epochs_done, settings.tensorboard)

  def epoch(self, row: report.Row, gates: Mapping[str, Any]) -> None:
    """A row of metrics; `gates` {path: values} become histograms."""
    if self._metrics is not None:
      self._metrics.write(row, gates)

  def architecture(self, keep: layers.Keep) -> None:
    """The channels that survive."""
    if not hosts.first():
      return
    network = self._settings.network
    architecture.write(
      self._workdir,
      network.name,
      network.width,
      self._settings.classes,
      self._settings.image_shape,
      keep,
    )

  def end(self, variables: compact.Variables, result: dict[str, Any]) -> None:
    """The final network, and last of all, as the sign of a finished run, its
    figures."""
    if hosts.first():
      weights.write(self._workdir, jax.device_get(variables))
      files.write_json(self._workdir / 'result.json', result)
