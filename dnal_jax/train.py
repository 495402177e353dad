"""A run, read top to bottom: stages of epochs, the cut, the figures.

The position says where a run stands; it is saved with every checkpoint, and a
run goes on from the newest one as if nothing had happened.
"""

from collections.abc import Mapping
import contextlib
from functools import partial
import pathlib
import time
from typing import Any

import jax
import jax.numpy as jnp

from dnal_jax import errors
from dnal_jax.config import RunConfig
from dnal_jax.data import sources
from dnal_jax.parallel import mesh, processes, stopping
from dnal_jax.search import channel_gates
from dnal_jax.training import (
  evaluate,
  loop,
  profiler,
  progress_bar,
  prune,
  train_state,
)
from dnal_jax.training.stages import Stage
from dnal_jax.workdir import (
  checkpoint,
  layout,
  metrics_file,
  result_file,
  status_file,
  writer,
)
from dnal_jax.workdir.run_state import RunState


def run(
  settings: RunConfig, config: Mapping[str, Any], workdir: pathlib.Path
) -> dict[str, Any]:
  """Runs, or goes on with, the run that `workdir` holds; returns its result.

  Raises:
    UserError: the folder is another config's or another process's, the data
      cannot be read, or the search has left no path through the network.
    Stopped: by a signal, a late save or a lost process; the run can go on.
  """
  layout.check_config(workdir, config)
  if (workdir / 'result.json').exists():
    print(f"'{workdir}' is finished; nothing to do. Its result:\n")
    return result_file.read_result(workdir / 'result.json')
  with (
    contextlib.ExitStack() as claimed,
    processes.report_lost_process(),
    stopping.StopSignal() as stop,
    jax.set_mesh(mesh.make_mesh()),
  ):
    mesh.check_divisible(
      'batch_size', settings.batch_size, settings.grad_accum_steps
    )
    mesh.check_divisible('eval_batch_size', settings.eval_batch_size)
    source = sources.open_source(  # before anything is written
      settings.data,
      seed=settings.seed,
      batch_size=settings.batch_size,
      eval_batch_size=settings.eval_batch_size,
    )
    claim = writer.claimed(settings, config, workdir, source.steps_per_epoch)
    told = processes.run_on_primary(lambda: claimed.enter_context(claim))
    processes.check_shared_file(workdir / 'config.json')
    return _Run(settings, workdir, source, stop, told).to_the_end()


class _Run:
  """Data, network, state and position of one run."""

  def __init__(
    self,
    settings: RunConfig,
    workdir: pathlib.Path,
    source: sources.Source,
    stop: stopping.StopSignal,
    told: status_file.StatusFile | None,  # None: not the first process
  ):
    self.settings = settings
    self.source = source
    self.stop = stop
    self.evaluate = evaluate.Evaluator(source)
    self.steps_per_epoch = source.steps_per_epoch
    self.network = prune.PrunableModel(settings.build(), settings.image_shape)
    self.profile = profiler.Profiler(workdir / 'profile', settings.profile)
    self.checkpoints = checkpoint.Checkpoints(workdir / 'checkpoints')
    self.saved = 'there is no checkpoint yet'
    self._resume_or_start()
    self.output = writer.Writer(settings, workdir, told, self.position)

  def to_the_end(self) -> dict[str, Any]:
    """All stages that are left, then the result."""
    with self.checkpoints:
      while True:
        try:
          self._train_stage()
        except errors.NotFinite as error:
          self._go_back(error)
          continue
        if self.position.stage + 1 == len(self.settings.stages):
          return self._finish()
        self._enter_next_stage()

  def _go_back(self, error: errors.NotFinite) -> None:
    """To the last checkpoint, at half the rates; raises if it may no more."""
    before = self.position
    if before.rollbacks == self.settings.max_nan_restarts:
      raise error
    self._resume_or_start()
    factor = self.position.slower_than(before)
    print(f'with learning rates times {factor:g}, because {error.what}')

  # Where the run stands.

  @property
  def stage(self) -> Stage:
    stage = self.settings.stages[self.position.stage]
    factor = self.position.lr_factor
    return stage if factor == 1 else stage.scaled(factor)

  def _where(self) -> str:
    return f"'{self.stage.name}', {self.position.told()}"

  def _resume_or_start(self) -> None:
    found = self.checkpoints.newest(self._shapes_at)
    if found is None:
      self._at(RunState(images=self.source.images))
      image = jnp.zeros((1, *self.settings.image_shape))
      key = jax.random.key(self.settings.seed)
      start = mesh.jit_replicated(self.network.net.init)(key, image)
      self._begin(start['params'], self.network.zeros(), start['batch_stats'])
      return
    position, self.state = found
    self._at(position)
    position.check(self.settings.data.title, self.source.images)
    broken = position.broken_for(jax.process_index(), jax.process_count())
    self.source.broken.update(broken)
    print(f'going on with {self._where()}')

  def _at(self, position: RunState) -> None:
    self.position = position
    self.network.cut(position.keep)

  def _shapes_at(self, position: RunState) -> train_state.TrainState:
    """Shapes and places of the state that is saved there."""
    self._at(position)
    return loop.state_shapes(self.stage, self.network.graph.shapes)

  def _begin(self, params, gate_logits, batch_stats) -> None:
    """A new state for the stage, and its entry in the result."""
    begin = mesh.jit_replicated(
      partial(train_state.create_train_state, self.stage)
    )
    self.state = begin(params, gate_logits, batch_stats)
    epochs = self.stage.epochs
    steps = epochs * self.steps_per_epoch
    self.position.begin_stage(self.stage.name, epochs, steps)

  def _enter_next_stage(self) -> None:
    """Cuts if the stage says so; new momenta, step 0."""
    params, batch_stats = self.state.result
    parts = params, self.state.gate_logits, batch_stats
    cut = prune.next_cut(self.settings.stages, self.position.stage)
    if cut and cut.stages_ahead == 1:
      parts = self._prune(cut)
    self.position.next_stage()
    self._begin(*parts)
    self._save()

  def _save(self) -> None:
    self.position.broken = processes.allgather_json(self.source.broken)
    self.output.check()
    self.checkpoints.save(self.state, self.position)
    self.saved = f'the last checkpoint is of {self._where()}'

  # Training.

  def _train_stage(self) -> None:
    position, done = self.position, self.position.steps_done
    done_of_stage = position.steps_of_stage
    compiled = loop.CompiledStage(
      self.network.net,
      self.stage,
      self.source,
      dtype=self.settings.compute_dtype,
      first_step=done - done_of_stage,
      grad_accum_steps=self.settings.grad_accum_steps,
    )
    bar = progress_bar.ProgressBar(
      self.stage.epochs * self.steps_per_epoch,
      self.settings.batch_size,
      done=done_of_stage,
      also=self.output.steps,
    )
    self.output.stage(position.stage, done_of_stage)
    with contextlib.closing(self.source):
      while position.epoch < self.stage.epochs:
        self._epoch(compiled, bar)
        self._save()
        self.stop.check(self._where())
    bar.close()

  def _epoch(
    self,
    stage: loop.CompiledStage,
    bar: progress_bar.ProgressBar,
  ) -> None:
    """Trains to the end of the epoch, evaluates, and tells of it."""
    position, searches = self.position, self.stage.delta_end is not None
    bar.begin(f'{self.stage.name} {position.epoch + 1}/{self.stage.epochs}')
    self._steps(stage, bar)
    evaluation = time.perf_counter()
    gates, census = stage.gates(self.state.gate_logits, position.epoch)
    sums = position.end_epoch()
    row = metrics_file.epoch_row(
      self.stage,
      position.epoch,
      sums,
      epochs_done=position.epochs_done,
      steps=self.steps_per_epoch,
      images=self.steps_per_epoch * self.settings.batch_size,
      validation=self.evaluate(
        self.network.net, self._variables(gates), 'validation'
      ),
      census=census if searches else None,
    )
    seconds = sums['seconds'] + time.perf_counter() - evaluation
    point = self.settings.point(position.stage)
    position.record(row['loss'], seconds, point, row['validation_top1'])
    self.output.epoch(row, channel_gates.by_path(gates) if searches else {})
    bar.tell(metrics_file.epoch_line(row))
    cut = prune.next_cut(self.settings.stages, position.stage)
    if searches and cut and 2 * position.epoch >= self.stage.epochs:
      bar.tell(prune.pruning_warning(self.network, self.state.gate_logits, cut))

  def _steps(
    self,
    stage: loop.CompiledStage,
    bar: progress_bar.ProgressBar,
  ) -> None:
    """The steps that are left of the epoch; saves now and then."""
    position = self.position
    while position.step < self.steps_per_epoch:
      every = self.settings.checkpoint_steps or self.steps_per_epoch
      left = self.steps_per_epoch - position.step
      steps = min(every - position.step % every, left)
      with self.profile.record(self.stage.name, steps, stage.text) as steps:
        started = time.perf_counter()
        first = position.steps_of_stage + 1
        self.state, metrics = stage.train(
          self.state,
          step=position.steps_done,
          steps=steps,
          epoch=position.epoch,
          told=bar.steps,
          stop=self.stop,
        )
        loop.check_finite(metrics, self.stage, first, self.saved)
        position.add(metrics, time.perf_counter() - started)
      if position.step < self.steps_per_epoch:  # else after the evaluation
        if self.stop.agreed or position.step % every == 0:
          self._save()
        self.stop.check(self._where())

  def _variables(self, gates) -> dict[str, Any]:
    params, batch_stats = self.state.result
    return {'params': params, 'batch_stats': batch_stats, 'gates': gates}

  # The cut and the end.

  def _prune(self, cut: prune.Cut) -> tuple[Any, Any, Any]:
    """Params, gate_logits, statistics of the cut network, then `self.network`."""
    params, batch_stats = self.state.result
    result = prune.prune(
      self.network,
      params,
      self.state.gate_logits,
      batch_stats,
      cut,
      evaluator=self.evaluate,
      decided=self.output.architecture,
    )
    self.network.cut(result.keep)
    self.position.keep = dict(result.keep)
    before, after, self.position.compact_max_abs_diff = result.comparison
    self.position.top1.update(pruned=before, compact=after)
    result_file.tell_cut(self.network.kept, self.network.gates, before, after)
    return result.params, self.network.zeros(), result.batch_stats

  def _finish(self) -> dict[str, Any]:
    """The last evaluation, the only one on test; the model and the result."""
    delta = self.stage.hyperparams(max(self.stage.epochs - 1, 0)).delta
    gates = channel_gates.gate_values(self.state.gate_logits, delta)
    variables = self._variables(gates)
    final = self.evaluate(self.network.net, variables, 'validation')
    test = self.evaluate(self.network.net, variables, 'test')
    result = self.output.end(
      variables, self.network, self.position, final=final, test=test
    )
    result_file.tell_broken(
      processes.allgather_json(self.source.broken_names())
    )
    return result
