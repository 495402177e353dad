"""A run, read top to bottom: stages of epochs, the cut, the figures.

The position says where a run stands; it is saved with every checkpoint, and a
run goes on from the newest one as if nothing had happened.
"""

from collections.abc import Mapping
from functools import partial
import pathlib
import time
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import tqdm

from dnal_jax import (
  checkpoint,
  compact,
  engine,
  errors,
  evaluate,
  folder,
  gating,
  layers,
  pruning,
  report,
  step,
)
from dnal_jax.data import memory
from dnal_jax.settings import Settings
from dnal_jax.stages import Stage


def run(
  settings: Settings, config: Mapping[str, Any], workdir: pathlib.Path
) -> dict[str, Any]:
  """Runs, or goes on with, the run that `workdir` holds; returns its result.

  Raises:
    UserError: the folder belongs to another config, the data cannot be read,
      or the search has left no path through the network.
  """
  folder.check(workdir, config)
  if (workdir / 'result.json').exists():
    print(f"'{workdir}' is finished; nothing to do. Its result:\n")
    return folder.read_json(workdir / 'result.json')
  splits = memory.load(settings.data)  # before anything is written
  images = len(splits.train.labels)
  if settings.batch_size > images:
    raise errors.UserError(
      f'batch_size is {settings.batch_size}, but there are {images} images'
      ' to train on; make it smaller'
    )
  folder.claim(workdir, config)
  return _Run(settings, workdir, splits).to_the_end()


class _Run:
  """Data, network, state and position of one run."""

  def __init__(
    self, settings: Settings, workdir: pathlib.Path, splits: memory.Splits
  ):
    self.settings = settings
    self.workdir = workdir
    self.train = jax.device_put(splits.train)
    self.validation = jax.device_put(splits.validation)
    self.test = splits.test
    self.evaluate = evaluate.Evaluator(settings.data, settings.eval_batch_size)
    self.steps_per_epoch = len(splits.train.labels) // settings.batch_size
    self.full = settings.build()
    self.known = compact.walk(self.full, settings.image_shape).gates
    self.checkpoints = checkpoint.Checkpoints(workdir / 'checkpoints')
    self._resume_or_start()
    self.metrics = report.Metrics(
      workdir, self._epochs_done(), settings.tensorboard
    )

  def to_the_end(self) -> dict[str, Any]:
    """All stages that are left, then the result."""
    try:
      while True:
        self._train_stage()
        if self.position.stage + 1 == len(self.settings.stages):
          return self._finish()
        self._enter_next_stage()
    finally:
      self.checkpoints.close()

  # Where the run stands.

  @property
  def stage(self) -> Stage:
    return self.settings.stages[self.position.stage]

  def _resume_or_start(self) -> None:
    latest = self.checkpoints.latest()
    if latest is None:
      self.position = checkpoint.Position()
      self._set_network({})
      image = jnp.zeros((1, *self.settings.image_shape))
      key = jax.random.key(self.settings.seed)
      variables = jax.jit(self.full.init)(key, image)
      self._begin(variables['params'], self._zeros(), variables['batch_stats'])
      return
    number, self.position = latest
    self._set_network(self.position.keep)
    shapes = self.walk.shapes
    like = jax.eval_shape(
      self._initial_state,
      shapes['params'],
      shapes.get('gates', {}),
      shapes['batch_stats'],
    )
    self.state = self.checkpoints.restore(number, like)
    done = f'{self.position.epoch} of {self.stage.epochs} epochs done'
    print(f"going on with '{self.stage.name}', {done}")

  def _set_network(self, keep: layers.Keep) -> None:
    self.net = compact.with_keep(self.full, keep)
    self.walk = compact.walk(self.net, self.settings.image_shape)

  def _zeros(self) -> Any:
    """Logits with which a network begins: all gates undecided."""
    gates = self.walk.shapes.get('gates', {})
    return jax.tree.map(lambda a: np.zeros(a.shape, a.dtype), gates)

  def _initial_state(self, params, logits, batch_stats) -> step.State:
    return step.begin(
      self.stage, params, logits, batch_stats, self.steps_per_epoch
    )

  def _begin(self, params, logits, batch_stats) -> None:
    """A new state for the stage, and its entry in the result."""
    self.state = jax.jit(self._initial_state)(params, logits, batch_stats)
    steps = self.stage.epochs * self.steps_per_epoch
    self.position.begin_stage(self.stage.name, self.stage.epochs, steps)

  def _enter_next_stage(self) -> None:
    """Cuts if the stage says so; new momenta, step 0."""
    _, *parts, _ = self.state
    entered = self.settings.stages[self.position.stage + 1]
    if entered.prune_below is not None:
      parts = self._prune(entered.prune_below)
    self.position.stage += 1
    self.position.epoch = 0
    self._begin(*parts)
    self._save()

  def _epochs_done(self) -> int:
    before = self.settings.stages[: self.position.stage]
    return sum(stage.epochs for stage in before) + self.position.epoch

  def _save(self) -> None:
    # A stage's entry and each of its epochs have a number of their own.
    number = self._epochs_done() + self.position.stage
    self.checkpoints.save(number, self.state, self.position)

  # Training.

  def _train_stage(self) -> None:
    compiled = engine.compile_stage(
      self.net,
      self.stage,
      self.settings.data,
      seed=self.settings.seed,
      batch_size=self.settings.batch_size,
      steps_per_epoch=self.steps_per_epoch,
      first_epoch=self._epochs_done() - self.position.epoch,
    )
    bar = report.StageBar(
      self.stage.epochs,
      self.steps_per_epoch,
      self.settings.batch_size,
      done=self.position.epoch,
    )
    while self.position.epoch < self.stage.epochs:
      self._epoch(compiled, bar)
      self._save()
    bar.close()

  def _epoch(self, stage: engine.Compiled, bar: report.StageBar) -> None:
    """Trains and evaluates for one epoch, and tells of it."""
    position, searches = self.position, self.stage.delta_end is not None
    started = time.perf_counter()
    bar.begin(f'{self.stage.name} {position.epoch + 1}/{self.stage.epochs}')
    self.state, steps = engine.train_epoch(
      stage,
      self.state,
      self.train,
      epoch=self._epochs_done(),
      steps=self.steps_per_epoch,
      told=bar.step,
    )
    seconds = time.perf_counter() - started
    gates, census = stage.gates(self.state.logits, position.epoch)
    position.epoch += 1
    row = report.epoch_row(
      self.stage,
      position.epoch,
      steps,
      epochs_done=self._epochs_done(),
      images=self.steps_per_epoch * self.settings.batch_size,
      seconds=seconds,
      validation=self.evaluate(
        self.net, self._variables(gates), self.validation
      ),
      census=census if searches else None,
    )
    engine.check_finite(row['loss'], self.stage, position.epoch)
    record = position.stages[-1]
    record['train_loss'] = row['loss']
    record['seconds'] += time.perf_counter() - started
    if searches:
      position.top1['gated'] = row['validation_top1']
    elif self.settings.warms_up(position.stage):
      position.top1['warmup'] = row['validation_top1']
    self.metrics.write(row, gating.by_path(gates) if searches else {})
    bar.tell(report.epoch_line(row))

  def _variables(self, gates) -> dict[str, Any]:
    return {
      'params': self.state.params,
      'batch_stats': self.state.batch_stats,
      'gates': gates,
    }

  # The cut and the end.

  def _prune(self, threshold: float) -> tuple[Any, Any, Any]:
    """Params, logits, statistics of the cut network, then `self.net`."""
    done = self.settings.stages[: self.position.stage + 1]
    result = pruning.prune(
      self.net,
      self.state.params,
      self.state.logits,
      self.state.batch_stats,
      search=[stage for stage in done if stage.delta_end is not None][-1],
      threshold=threshold,
      image_shape=self.settings.image_shape,
      evaluator=self.evaluate,
      split=self.validation,
      decided=self._write_architecture,
    )
    self._set_network(result.keep)
    self.position.keep = dict(result.keep)
    self.position.compact_max_abs_diff = result.max_abs_diff
    self.position.top1.update(
      pruned=result.pruned_top1, compact=result.compact_top1
    )
    tqdm.tqdm.write(
      f'cut to {sum(map(len, self.walk.gates.values()))} of'
      f' {sum(map(len, self.known.values()))} gated channels: validation'
      f' {result.pruned_top1:.2%} gated, {result.compact_top1:.2%} cut'
    )
    return result.params, self._zeros(), result.batch_stats

  def _write_architecture(self, keep: layers.Keep) -> None:
    settings = self.settings
    folder.write_architecture(
      self.workdir,
      settings.network.name,
      settings.network.width,
      settings.data.classes,
      settings.image_shape,
      keep,
    )

  def _finish(self) -> dict[str, Any]:
    """The last evaluation, the only one on test; the model and the result."""
    gates = self.stage.gates(self.state.logits, max(self.stage.epochs - 1, 0))
    variables = self._variables(gates)
    final = self.evaluate(self.net, variables, self.validation)
    test = self.evaluate(self.net, variables, jax.device_put(self.test))
    pruned = bool(self.position.keep)
    if not pruned:
      self._write_architecture(self.known)
    folder.write_model(self.workdir, jax.device_get(variables))
    count = partial(compact.count, image_shape=self.settings.image_shape)
    result = report.result(
      self.settings,
      self.position,
      baseline=count(self.full),
      learned=count(self.net) if pruned else None,
      gates=sum(map(len, self.known.values())),
      kept=sum(map(len, self.walk.gates.values())) if pruned else None,
      final=final,
      test=test,
    )
    folder.write_json(self.workdir / 'result.json', result)
    return result
