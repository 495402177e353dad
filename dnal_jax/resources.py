"""What a run works with from its start to its end: data, files, devices."""

from collections.abc import Iterator, Mapping
import contextlib
import dataclasses
import pathlib
from typing import Any

import jax

from dnal_jax.config import RunConfig
from dnal_jax.data import sources
from dnal_jax.parallel import mesh, processes, stopping
from dnal_jax.training.evaluate import Evaluator
from dnal_jax.workdir.checkpoint import Checkpoints
from dnal_jax.workdir.writer import Writer, open_writer


@dataclasses.dataclass(frozen=True)
class Resources:
  """Opened by `open_resources`."""

  config: RunConfig
  workdir: pathlib.Path
  source: sources.Source
  evaluator: Evaluator
  checkpoints: Checkpoints
  writer: Writer
  stop: stopping.StopSignal

  @property
  def checkpoint_interval(self) -> int:
    """Steps of an epoch between two checkpoints."""
    return self.config.checkpoint_steps or self.source.steps_per_epoch


@contextlib.contextmanager
def open_resources(
  config: RunConfig, config_dict: Mapping[str, Any], workdir: pathlib.Path
) -> Iterator[Resources]:
  """Sets the mesh of all devices, opens the data, then locks the folder.

  Raises:
    UserError: batches do not fit the devices, the data cannot be read, or the
      folder is another run's. Nothing was written then.
    Stopped: inside, another process was lost.
  """
  with (
    contextlib.ExitStack() as files,  # closed last: status.json has the message
    contextlib.ExitStack() as stack,
  ):
    stack.enter_context(processes.report_lost_process())
    stop = stack.enter_context(stopping.StopSignal())
    stack.enter_context(jax.set_mesh(mesh.make_mesh()))
    mesh.check_divisible(
      'batch_size', config.batch_size, config.grad_accum_steps
    )
    mesh.check_divisible('eval_batch_size', config.eval_batch_size)
    source = sources.open_source(
      config.data,
      seed=config.seed,
      batch_size=config.batch_size,
      eval_batch_size=config.eval_batch_size,
    )
    stack.enter_context(contextlib.closing(source))
    writer = files.enter_context(
      open_writer(
        config, config_dict, workdir, source.contents, source.steps_per_epoch
      )
    )
    checkpoints = stack.enter_context(Checkpoints(workdir / 'checkpoints'))
    yield Resources(
      config, workdir, source, Evaluator(source), checkpoints, writer, stop
    )
