"""The compiled functions of a stage, over a data set that lies on the device.

N images, H height, W width, C channels.
"""

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import jax

from dnal_jax import gating, step
from dnal_jax.data import Data, batches
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
