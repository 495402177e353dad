"""The compiled functions of a stage, and the loop that calls them."""

from collections import deque
from collections.abc import Callable
from functools import partial
import math
import time
from typing import Any, NamedTuple

import jax
from jax import lax
import jax.numpy as jnp

from dnal_jax import errors
from dnal_jax.data.sources import Source
from dnal_jax.parallel import mesh
from dnal_jax.parallel.stopping import StopSignal
from dnal_jax.search import channel_gates
from dnal_jax.search.budget import Budget
from dnal_jax.training import step
from dnal_jax.training.stages import Stage, StepHyperparams
from dnal_jax.training.train_state import TrainState, create_train_state

Metrics = dict[str, Any]  # of a step (`step.train_step`), as numpy


class CompiledStage:
  """The jitted functions of a stage, each compiled once: its steps, its gates.

  If the data is on the device, one call runs a loop over several steps. The
  length of the loop is an argument, so that other lengths need no other
  program, and how steps are grouped into calls does not change a digit. The
  stage's `StepHyperparams` and its first step in the run are arguments, too:
  other values are the same program, which JAX's persistent cache has.
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
    budget: Budget | None = None,  # of a stage with a target
    teacher: tuple[Any, Any] = (None, None),  # a network and its variables
  ):
    teacher_net, teacher_variables = teacher

    def train(state, inputs, arguments):
      first_step, hyperparams, teacher_variables = arguments
      batch = source.train_batch(inputs, first_step + state.step)
      batch = mesh.batch_sharded(batch)
      state_and_metrics = step.train_step(
        state,
        batch._replace(image=batch.image.astype(dtype)),
        hyperparams,
        teacher_variables,
        net=net,
        stage=stage,
        steps_per_epoch=source.steps_per_epoch,
        grad_accum_steps=grad_accum_steps,
        budget=budget,
        teacher_net=teacher_net,
      )
      return mesh.replicated(state_and_metrics)

    def gates(gate_logits, delta):
      values = channel_gates.gate_values(gate_logits, delta)
      values = mesh.replicated(values)
      return values, channel_gates.count_by_state(values)

    self._stage, self._first_step = stage, first_step
    self._teacher_variables = teacher_variables
    self.sizer = CallSizer(source.steps_per_call)
    self._gates = jax.jit(gates)
    most = source.steps_per_call
    steps = _several(train, most) if most > 1 else _one(train)
    # (state, inputs, n, `_arguments`) -> state after n steps, and
    # metrics [most] of which the first n are filled in. Donates the state.
    self._steps = jax.jit(steps, donate_argnums=0)
    self._argument_shapes: Any = None  # of (state, inputs)

  def gates(self, gate_logits: Any, epoch: int) -> tuple[Any, jax.Array]:
    """Gate values in an epoch of the stage, and [3] int32, how many of them are
    low, undecided and high (`channel_gates.count_by_state`)."""
    return self._gates(gate_logits, self._stage.hyperparams(epoch).delta)

  def run_steps(
    self, state: TrainState, inputs: Any, steps: int, epoch: int
  ) -> tuple[TrainState, Any]:
    """Starts one call: the state after `steps` steps in an epoch, and their
    metrics, both still being computed. Donates `state`."""
    if self._argument_shapes is None:
      self._argument_shapes = jax.eval_shape(lambda *a: a, state, inputs)
    return self._steps(state, inputs, steps, self._arguments(epoch))

  def lower(self, state: Any, inputs: Any) -> jax.stages.Lowered:
    """The program of the steps, given a state and inputs or their shapes."""
    return self._steps.lower(state, inputs, 1, self._arguments(0))

  def program_text(self) -> str:
    """The compiled program of the steps; after the first call."""
    return self.lower(*self._argument_shapes).compile().as_text() or ''

  def _arguments(self, epoch: int) -> tuple[int, StepHyperparams, Any]:
    hyperparams = self._stage.hyperparams(epoch)
    return self._first_step, hyperparams, self._teacher_variables


class CallSizer:
  """How many steps the next call should have.

  So many that a call takes about a quarter of a second: long compared with the
  time that Python needs to start it, short for somebody who waits for a stop.
  """

  SECONDS = 0.25
  # On CPU every call gets its memory from the system anew, which can take as
  # long as a step does.
  LEAST = 4

  def __init__(self, steps_per_call: int):
    self._most = steps_per_call
    self.steps = min(self.LEAST, steps_per_call)
    self._last_end: float | None = None

  def restart_clock(self) -> None:
    """The next call to end is not compared with the one before."""
    self._last_end = None

  def call_ended(self, steps: int) -> None:
    """A call of so many steps has ended now."""
    now = time.perf_counter()
    # The first call may include compiling. Several processes must make the same
    # calls, and their clocks differ.
    if self._last_end is not None and jax.process_count() == 1:
      wanted = int(self.SECONDS * steps / max(now - self._last_end, 1e-9))
      wanted = min(max(wanted, self.LEAST), 2 * self.steps)
      self.steps = min(wanted, self._most)
    self._last_end = now


class _Call(NamedTuple):
  """A call that was started, and may still be computing."""

  steps: int
  metrics: Any
  stop_vote: jax.typing.ArrayLike


def train_steps(
  stage: CompiledStage,
  state: TrainState,
  source: Source,
  *,
  first_step: int,  # in the run
  steps: int,  # of one epoch
  epoch: int,
  on_steps: Callable[[int, Metrics], None],
  stop: StopSignal,
) -> tuple[TrainState, list[Metrics]]:
  """The state after some steps of an epoch, and their metrics; fewer steps than
  asked for if a stop is requested.

  `on_steps` is called with the number of those steps that are done, and with
  the metrics of the last one. Two calls are in flight at any time, so that the
  device never waits for Python.
  """
  finished: list[Metrics] = []
  in_flight: deque[_Call] = deque()
  sizer = stage.sizer
  sizer.restart_clock()

  def wait_for_oldest() -> None:
    call = in_flight.popleft()
    metrics = jax.device_get(call.metrics)
    stop.count(call.stop_vote)
    for i in range(call.steps):
      finished.append({key: values[i] for key, values in metrics.items()})
    on_steps(len(finished), finished[-1])
    sizer.call_ended(call.steps)

  started = 0
  while started < steps and not stop.requested:
    n = min(sizer.steps, steps - started)
    inputs = source.inputs(first_step + started, n)
    state, metrics = stage.run_steps(state, inputs, n, epoch)
    in_flight.append(_Call(n, metrics, stop.vote()))
    started += n
    if len(in_flight) == 2:
      wait_for_oldest()
  while in_flight:
    wait_for_oldest()
  return state, finished


def state_shapes(stage: Stage, variables: Any) -> TrainState:
  """The train state of a stage as shapes, replicated over the devices, given
  the shapes of a network's variables."""
  shapes = jax.eval_shape(
    partial(create_train_state, stage),
    variables['params'],
    variables.get('gates', {}),
    variables['batch_stats'],
  )
  return mesh.replicated_shapes(shapes)


def check_finite(
  metrics: list[Metrics], stage: Stage, first_step: int, saved: str
) -> None:
  """Raises before anything is saved that is not a number.

  `first_step` is the number in the stage, from 1, of the step that the first of
  the metrics belongs to; `saved` says where the last checkpoint stands.

  Raises:
    NotFinite: a loss or a gradient is NaN or infinite; names the first step.
  """
  for number, of_step in enumerate(metrics, first_step):
    if of_step['finite']:
      continue
    loss = float(of_step['loss'])
    what = 'a gradient is' if math.isfinite(loss) else f'the loss is {loss},'
    rates = {name: group.lr.base for name, group in stage.train.items()}
    raise errors.NotFinite(
      f"{what} not finite in stage '{stage.name}', step {number}, with learning"
      f' rates {rates}; {saved}',
      'Likely: the learning rate is too large (lower'
      f' stages.{stage.name}.train.*.lr.base, or set'
      ' --config.max_nan_restarts=2, which halves it); compute_dtype is'
      ' bfloat16 (use float32); or data.mean and data.std are not those of the'
      ' images. Start in a new --workdir',
    )


def _one(train):
  def steps(state, inputs, n, arguments):
    del n
    state, metrics = train(state, inputs, arguments)
    return state, jax.tree.map(lambda value: value[None], metrics)

  return steps


def _several(train, most: int):
  train = jax.jit(train)  # traced once for its shapes and for the loop

  def steps(state, inputs, n, arguments):
    def body(i, carry):
      state, metrics = carry
      state, of_step = train(state, inputs, arguments)
      return state, jax.tree.map(lambda a, b: a.at[i].set(b), metrics, of_step)

    _, shapes = jax.eval_shape(train, state, inputs, arguments)
    metrics = jax.tree.map(
      lambda a: jnp.zeros((most, *a.shape), a.dtype), shapes
    )
    return lax.fori_loop(0, n, body, (state, metrics))

  return steps
