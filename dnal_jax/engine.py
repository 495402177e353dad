"""The compiled functions of a stage, over a data set that lies on the device.

N images, H height, W width, C channels.
"""

from collections.abc import Callable
from functools import partial
import math
from typing import Any, NamedTuple

import jax

from dnal_jax import errors, gating, step
from dnal_jax.data import Data, batches, memory
from dnal_jax.stages import Stage


class Compiled(NamedTuple):
  """What a stage runs, each compiled once."""

  # (state, images [N, H, W, C] uint8, labels [N] int32, order [N] int32)
  # -> (state, metrics). The state given is used up.
  step: Callable[..., tuple[step.State, dict[str, jax.Array]]]
  # (epoch of the run, N) -> order [N] int32 in which the epoch sees images
  order: Callable[[int, int], jax.Array]
  # (logits, epoch of the stage) -> gate values, their census [3] int32
  gates: Callable[[Any, int], tuple[Any, jax.Array]]


def compile_stage(
  net: Any,
  stage: Stage,
  data: Data,
  *,
  seed: int,
  batch_size: int,
  steps_per_epoch: int,
  first_epoch: int,  # of the stage, in the run
) -> Compiled:
  """Every batch is a function of the seed and the run's step alone, so the
  state is all that a checkpoint must hold."""

  def train(state, images, labels, order):
    batch = batches.train_batch(
      images,
      labels,
      order,
      first_epoch * steps_per_epoch + state.step,
      state.step % steps_per_epoch,
      seed=seed,
      batch_size=batch_size,
      data=data,
    )
    return step.train_step(
      state, batch, net=net, stage=stage, steps_per_epoch=steps_per_epoch
    )

  def gates(logits, epoch):
    values = stage.gates(logits, epoch)
    return values, gating.census(values)

  order = partial(batches.epoch_order, seed)
  return Compiled(
    jax.jit(train, donate_argnums=0),
    jax.jit(order, static_argnums=1),
    jax.jit(gates),
  )


def check_finite(loss: float, stage: Stage, epoch: int) -> None:
  """Stops a run before anything that is not a number is saved.

  Raises:
    UserError: the loss is NaN or infinite.
  """
  if not math.isfinite(loss):
    rates = {name: group.lr.base for name, group in stage.train.items()}
    raise errors.UserError(
      f"the loss is {loss} in stage '{stage.name}', epoch {epoch}, with"
      f' learning rates {rates}: lower stages.{stage.name}.train.*.lr.base in a'
      ' new --workdir'
    )


def train_epoch(
  stage: Compiled,
  state: step.State,
  split: memory.Split,
  *,
  epoch: int,  # of the run
  steps: int,
  told: Callable[[dict[str, jax.Array]], None],
) -> tuple[step.State, list[dict[str, Any]]]:
  """The state after an epoch, and the metrics of its steps as numpy.

  `told` gets each step's metrics while they are still being computed.
  """
  order = stage.order(epoch, len(split.labels))
  metrics = []
  for _ in range(steps):
    state, of_step = stage.step(state, *split, order)
    metrics.append(of_step)
    told(of_step)
  return state, jax.device_get(metrics)
