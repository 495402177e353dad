"""The compiled functions of a stage, and the loop that calls them."""

from collections.abc import Callable, Iterator
import math
from typing import Any, NamedTuple

import jax

from dnal_jax import errors, gating, step
from dnal_jax.data.sources import Source
from dnal_jax.stages import Stage


class Compiled(NamedTuple):
  """What a stage runs, each compiled once."""

  # (state, inputs of the source) -> (state, metrics). Uses up the state given.
  step: Callable[..., tuple[step.State, dict[str, jax.Array]]]
  # (logits, epoch of the stage) -> gate values, their census [3] int32
  gates: Callable[[Any, int], tuple[Any, jax.Array]]


def compile_stage(
  net: Any,
  stage: Stage,
  source: Source,
  *,
  dtype: str,  # in which the network computes
  first_step: int,  # of the stage, in the run
) -> Compiled:
  """Every batch is a function of the seed and the run's step alone, so the
  state is all that a checkpoint must hold."""

  def train(state, inputs):
    batch = source.train_batch(inputs, first_step + state.step)
    return step.train_step(
      state,
      batch._replace(image=batch.image.astype(dtype)),
      net=net,
      stage=stage,
      steps_per_epoch=source.steps_per_epoch,
    )

  def gates(logits, epoch):
    values = stage.gates(logits, epoch)
    return values, gating.census(values)

  return Compiled(jax.jit(train, donate_argnums=0), jax.jit(gates))


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


def train(
  stage: Compiled,
  state: step.State,
  inputs: Iterator[Any],
  *,
  steps: int,
  told: Callable[[dict[str, jax.Array]], None],
) -> tuple[step.State, list[dict[str, Any]]]:
  """The state after some steps, and their metrics as numpy.

  `told` gets each step's metrics while they are still being computed.
  """
  metrics = []
  for _ in range(steps):
    state, of_step = stage.step(state, next(inputs))
    metrics.append(of_step)
    told(of_step)
  return state, jax.device_get(metrics)
