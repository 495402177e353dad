"""The compiled functions of a stage, and the loop that calls them."""

from collections.abc import Callable
from functools import partial
import math
import time
from typing import Any

import jax
from jax import lax
import jax.numpy as jnp

from dnal_jax import errors
from dnal_jax.data.sources import Source
from dnal_jax.parallel import mesh, stopping
from dnal_jax.search import channel_gates
from dnal_jax.training import step, train_state
from dnal_jax.training.stages import Stage, StepHyperparams

# Steps are handed to the device in groups that take about so many seconds:
# long against the time that Python needs for a call, short for who waits. On
# CPU each call gets its memory anew, which can take as long as a step does, so
# there are never fewer steps than _LEAST in a group.
_SECONDS = 0.25
_LEAST = 4


class CompiledStage:
  """A stage whose steps and gates are each compiled once.

  Where the data lies on the device, several steps are one call, a loop on the
  device. Its length is an argument, so it costs no other compilation, and how
  steps are grouped does not change a digit. Arguments, too, are the stage's
  `StepHyperparams` and where in the run it begins: with other ones it is the
  same program, which JAX's persistent cache has.
  """

  def __init__(
    self,
    net: Any,
    stage: Stage,
    source: Source,
    *,
    dtype: str,  # in which the network computes
    first_step: int,  # of the stage, in the run
    grad_accum_steps: int = 1,  # parts of a batch, one after the other
  ):
    """Every batch is a function of the seed and the run's step alone, so the
    state is all that a checkpoint must hold."""

    def train(state, inputs, given):
      first_step, numbers = given
      batch = mesh.batch_sharded(
        source.train_batch(inputs, first_step + state.step)
      )
      done = step.train_step(
        state,
        batch._replace(image=batch.image.astype(dtype)),
        numbers,
        net=net,
        stage=stage,
        steps_per_epoch=source.steps_per_epoch,
        grad_accum_steps=grad_accum_steps,
      )
      return mesh.replicated(done)

    def gates(gate_logits, delta):
      values = mesh.replicated(channel_gates.gate_values(gate_logits, delta))
      return values, channel_gates.count_by_state(values)

    self._stage, self._source = stage, source
    self._first_step = first_step
    self._gates = jax.jit(gates)
    self._most = source.steps_per_call
    steps = _several(train, self._most) if self._most > 1 else _one(train)
    # (state, inputs, n, (first_step, numbers)) -> state after n steps, their
    # metrics [self._most]. Uses up the state given.
    self._steps = jax.jit(steps, donate_argnums=0)
    self._called_with: Any = None  # shapes of (state, inputs)
    self._pace = min(_LEAST, self._most)  # steps of the next call

  def gates(self, gate_logits: Any, epoch: int) -> tuple[Any, jax.Array]:
    """Gate values in an epoch of the stage, and their census [3] int32."""
    return self._gates(gate_logits, self._stage.hyperparams(epoch).delta)

  def train(
    self,
    state: train_state.TrainState,
    *,
    step: int,
    steps: int,
    epoch: int,
    told: Callable[[int, dict[str, Any]], None],
    stop: stopping.StopSignal,
  ) -> tuple[train_state.TrainState, list[dict[str, Any]]]:
    """The state after some steps of an epoch of the stage, from step `step` of
    the run on, and their metrics as numpy; fewer steps than asked for where
    `stop` is agreed on.

    `told` gets numbers of steps that were done and the last one's metrics.
    Two calls are under way at any time, so that the device never waits.
    """
    done: list[dict[str, Any]] = []
    under_way: list[tuple[int, Any, Any]] = []
    ended = None

    def end() -> None:
      nonlocal ended
      n, metrics, asked = under_way.pop(0)
      metrics = jax.device_get(metrics)
      stop.agree(asked)
      done.extend({k: v[i] for k, v in metrics.items()} for i in range(n))
      told(n, done[-1])
      now = time.perf_counter()
      # Before the first end, it may have been compiled. Several processes must
      # make the same calls, and their clocks differ.
      if ended is not None and jax.process_count() == 1:
        wanted = int(_SECONDS * n / max(now - ended, 1e-9))
        wanted = min(max(wanted, _LEAST), 2 * self._pace)
        self._pace = min(wanted, self._most)
      ended = now

    left = steps
    while left and not stop.agreed:
      n = min(self._pace, left)
      inputs = self._source.inputs(step + steps - left, n)
      if self._called_with is None:
        self._called_with = jax.eval_shape(lambda *a: a, state, inputs)
      state, metrics = self._steps(state, inputs, n, self._given(epoch))
      under_way.append((n, metrics, stop.ask()))
      left -= n
      if len(under_way) == 2:
        end()
    while under_way:
      end()
    return state, done

  def lower(self, state: Any, inputs: Any) -> jax.stages.Lowered:
    """The program of the steps, of a state and inputs or their shapes."""
    return self._steps.lower(state, inputs, 1, self._given(0))

  def _given(self, epoch: int) -> tuple[int, StepHyperparams]:
    return self._first_step, self._stage.hyperparams(epoch)

  def text(self) -> str:
    """The compiled program of the steps; after the first of them."""
    return self.lower(*self._called_with).compile().as_text() or ''


def state_shapes(stage: Stage, variables: Any) -> train_state.TrainState:
  """The state of a stage as shapes, every device having the whole, of the
  shapes of a network's variables."""
  shapes = jax.eval_shape(
    partial(train_state.create_train_state, stage),
    variables['params'],
    variables.get('gates', {}),
    variables['batch_stats'],
  )
  return mesh.replicated_shapes(shapes)


def check_finite(
  steps: list[dict[str, Any]], stage: Stage, first_step: int, saved: str
) -> None:
  """Stops a run before anything that is not a number is saved.

  `first_step` is the number of the first of the steps in the stage; `saved`
  says where the last checkpoint stands.

  Raises:
    NotFinite: a loss or a gradient is NaN or infinite; names the first step.
  """
  for number, metrics in enumerate(steps, first_step):
    if metrics['finite']:
      continue
    loss = float(metrics['loss'])
    what = 'a gradient is' if math.isfinite(loss) else f'the loss is {loss},'
    rates = {name: group.lr.base for name, group in stage.train.items()}
    raise errors.NotFinite(
      f"{what} not finite in stage '{stage.name}', step {number}, with learning"
      f' rates {rates}; {saved}',
      'Likely: the learning rate is too large (lower'
      f' stages.{stage.name}.train.*.lr.base, or have --config.max_nan_restarts=2 do'
      ' it); compute_dtype is bfloat16 (take float32); or data.mean and'
      ' data.std are not those of the images. Start in a new --workdir',
    )


def _one(train):
  def steps(state, inputs, n, given):
    del n
    state, metrics = train(state, inputs, given)
    return state, jax.tree.map(lambda value: value[None], metrics)

  return steps


def _several(train, most: int):
  train = jax.jit(train)  # traced once for its shapes and for the loop

  def steps(state, inputs, n, given):
    def body(i, carry):
      state, metrics = carry
      state, of_step = train(state, inputs, given)
      return state, jax.tree.map(lambda a, b: a.at[i].set(b), metrics, of_step)

    _, shapes = jax.eval_shape(train, state, inputs, given)
    metrics = jax.tree.map(
      lambda a: jnp.zeros((most, *a.shape), a.dtype), shapes
    )
    return lax.fori_loop(0, n, body, (state, metrics))

  return steps
