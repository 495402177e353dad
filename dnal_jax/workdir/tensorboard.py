"""TensorBoard events of a run: metrics as scalars, gates as histograms."""

from collections.abc import Mapping
import importlib.util
import pathlib
from typing import Any

import numpy as np

from dnal_jax.parallel import streams
from dnal_jax.training.hooks import Hook


def installed() -> bool:
  """Whether clu, which writes the events, can be imported."""
  needed = ('clu', 'tensorflow', 'tensorboard')
  return all(importlib.util.find_spec(name) is not None for name in needed)


class TensorBoard(Hook):
  """Writes events into `workdir`/tensorboard.

  Nothing is dropped on resuming: TensorBoard shows an epoch twice that is done
  again.
  """

  def __init__(self, workdir: pathlib.Path):
    streams.quiet_tensorflow()
    from clu import metric_writers

    self._writer = metric_writers.SummaryWriter(str(workdir / 'tensorboard'))

  def end_epoch(self, row: Mapping[str, Any], gates: Mapping[str, Any]) -> None:
    scalars = {
      f'{row["stage"]}/{key}': value
      for key, value in row.items()
      if isinstance(value, float)
    }
    self._writer.write_scalars(row['step'], scalars)
    histograms = {f'gates/{path}': np.asarray(g) for path, g in gates.items()}
    if histograms:
      self._writer.write_histograms(row['step'], histograms)
    self._writer.flush()
