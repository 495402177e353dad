"""What a run works with from its start to its end: data, files, devices."""

from collections.abc import Iterator, Mapping
import contextlib
import dataclasses
import pathlib
import re
from typing import Any

import jax

from dnal_jax import errors
from dnal_jax.config import RunConfig
from dnal_jax.data import sources
from dnal_jax.parallel import mesh, processes, stopping
from dnal_jax.training import stages
from dnal_jax.training.evaluate import Evaluator
from dnal_jax.workdir import parent
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

  def chunk_size(self, step: int) -> int:
    """Steps from step `step` of an epoch to the next checkpoint or to the end
    of the epoch."""
    left = self.source.steps_per_epoch - step
    interval = self.checkpoint_interval
    return min(interval - step % interval, left)


@contextlib.contextmanager
def open_resources(
  config: RunConfig, config_dict: Mapping[str, Any], workdir: pathlib.Path
) -> Iterator[Resources]:
  """Sets the mesh of all devices, opens the data, then locks the folder.

  Raises:
    UserError: batches do not fit the devices, the data cannot be read, or the
      folder is another run's. Nothing was written then. Or, also inside, there
      is not enough memory.
    Stopped: inside, another process was lost.
  """
  with (
    contextlib.ExitStack() as files,  # closed last: status.json has the message
    contextlib.ExitStack() as stack,
  ):
    stack.enter_context(processes.report_lost_process())
    stack.enter_context(_report_out_of_memory(config))
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
    is_new = not (workdir / 'config.json').exists()
    if config.init_from is not None and is_new:
      parent.read(config, source.contents)
    for stage in config.stages if is_new else ():
      if stage.distill.teacher != stages.WARMUP:
        parent.read_teacher(config, stage.distill.teacher, workdir)
    writer = files.enter_context(
      open_writer(
        config, config_dict, workdir, source.contents, source.steps_per_epoch
      )
    )
    checkpoints = stack.enter_context(Checkpoints(workdir / 'checkpoints'))
    yield Resources(
      config, workdir, source, Evaluator(source), checkpoints, writer, stop
    )


# XLA's error where a device has too little memory, for a program or for data:
# on CPU "Out of memory allocating 1 bytes", on GPU "Out of memory while trying
# to allocate 1 bytes", on TPU "Ran out of memory in memory space hbm". Other
# resources, such as the size of a message, may be exhausted as well.
_DEVICE_IS_FULL = re.compile('RESOURCE_EXHAUSTED: (.*memory.*)')


@contextlib.contextmanager
def _report_out_of_memory(config: RunConfig) -> Iterator[None]:
  """Turns what JAX and numpy raise without memory into one message.

  Raises:
    UserError: in place of such an error.
  """
  try:
    yield
  except (jax.errors.JaxRuntimeError, MemoryError) as error:
    if isinstance(error, MemoryError):
      reason = str(error) or 'the host has no more'
    else:
      found = _DEVICE_IS_FULL.match(str(error))
      if found is None:
        raise
      reason = found[1].rstrip('.')
    raise errors.UserError(
      f'out of memory ({reason}), with batch_size {config.batch_size},'
      f' grad_accum_steps {config.grad_accum_steps} and eval_batch_size'
      f' {config.eval_batch_size}; make the batches smaller, or set'
      f' --config.grad_accum_steps={2 * config.grad_accum_steps} or more, which'
      ' computes a batch in parts'
    ) from error
