"""A run, from top to bottom: stages of epochs of steps, pruning, the result.

`RunState` says where a run stands. It is saved with the arrays in every
checkpoint, and a run continues from the newest one as if nothing had happened.
"""

from collections.abc import Mapping
import dataclasses
import pathlib
import time
from typing import Any

import jax

from dnal_jax import beginning, errors, paths
from dnal_jax.config import RunConfig
from dnal_jax.parallel import processes
from dnal_jax.resources import Resources, open_resources
from dnal_jax.search import channel_gates
from dnal_jax.training import (
  advice,
  loop,
  metrics,
  prune,
  stages,
)
from dnal_jax.training.hooks import HookList
from dnal_jax.training.profiler import Profiler
from dnal_jax.training.progress_bar import ProgressBar, show
from dnal_jax.training.prune import PrunableModel
from dnal_jax.training.train_state import TrainState
from dnal_jax.workdir import layout, parent, result_file
from dnal_jax.workdir.run_state import RunState


def run(
  config: RunConfig, config_dict: Mapping[str, Any], workdir: pathlib.Path
) -> dict[str, Any]:
  """Starts or continues the run in `workdir`; returns its result.

  Raises:
    UserError: the folder is another config's or in use, the data cannot be
      read, or the search has left no path through the network.
    Stopped: by a signal, a save that hangs, or the loss of another process; the
      same command continues the run.
  """
  workdir = paths.local('workdir', workdir)
  layout.check_config(workdir, config_dict)
  if (workdir / 'result.json').exists():
    print(f"'{workdir}' is finished; nothing to do. Its result:\n")
    return result_file.read_result(workdir / 'result.json')
  with open_resources(config, config_dict, workdir) as resources:
    return _train(resources)


def _train(r: Resources) -> dict[str, Any]:
  """All that is left of the run: every stage, epoch and chunk of steps.

  A chunk ends at the next checkpoint, or earlier if a hook shortens it.
  """
  run, model, state = beginning.restore_or_start(r)
  hooks = _hooks(r, run)
  while True:
    stage = beginning.stage_of(r.config, run)
    compiled = _compile(r, run, model, stage)
    hooks.begin_stage(run.cursor.stage, stage, run.stage_steps_done)
    try:
      while run.cursor.epoch < stage.epochs:
        advice.check_hopeless(stage, run.closed_epochs)
        while run.cursor.step < r.source.steps_per_epoch:
          steps = hooks.before_chunk(r.chunk_size(run.cursor.step))
          started, done = time.perf_counter(), run.stage_steps_done
          state, step_metrics = loop.train_steps(
            compiled,
            state,
            r.source,
            first_step=run.steps_done,
            steps=steps,
            epoch=run.cursor.epoch,
            on_steps=lambda n, last, done=done: hooks.on_steps(done + n, last),
            stop=r.stop,
          )
          seconds = time.perf_counter() - started
          hooks.after_chunk(compiled.program_text)
          saved = r.checkpoints.describe_latest()
          loop.check_finite(step_metrics, stage, done + 1, saved)
          run = run.add_steps(step_metrics, seconds)
          if run.cursor.step < r.source.steps_per_epoch:
            if r.stop.requested or run.cursor.step % r.checkpoint_interval == 0:
              run = _save(r, run, state)
            r.stop.raise_if_requested(run.describe())
        run = _end_epoch(r, run, model, stage, state, compiled, hooks)
        run = _save(r, run, state)
        r.stop.raise_if_requested(run.describe())
    except errors.NotFinite as error:
      if run.result.rollbacks == r.config.max_nan_restarts:
        raise
      failed = run
      run, model, state = beginning.restore_or_start(r)
      run = run.restart_after(failed)
      print(
        f'with learning rates times {run.lr_factor:g}, because {error.what}'
      )
      r.stop.raise_if_requested(run.describe())
      continue
    finally:
      hooks.end_stage()
    if run.cursor.stage + 1 == len(r.config.stages):
      return _finish(r, run, model, stage, state)
    run, model, state = beginning.enter_next_stage(r, run, model, state)
    run = _save(r, run, state)


def _hooks(r: Resources, run: RunState) -> HookList:
  hooks = r.writer.hooks(run.epochs_done)
  hooks.append(ProgressBar(r.config.batch_size, r.source.steps_per_epoch))
  if r.config.profile is not None:
    hooks.append(Profiler(r.workdir / 'profile', r.config.profile))
  return HookList(hooks)


# Chunks and epochs.


def _compile(
  r: Resources, run: RunState, model: PrunableModel, stage: stages.Stage
) -> loop.CompiledStage:
  return loop.CompiledStage(
    model.net,
    stage,
    r.source,
    dtype=r.config.compute_dtype,
    first_step=run.stage_first_step,
    grad_accum_steps=r.config.grad_accum_steps,
    budget=model.budget(stage.target),
    teacher=parent.read_teacher(r.config, stage.distill.teacher, r.workdir),
  )


def _save(r: Resources, run: RunState, state: TrainState) -> RunState:
  """Starts to save a checkpoint; the run as it is saved."""
  broken = tuple(processes.allgather_json(r.source.broken))
  run = dataclasses.replace(run, broken=broken)
  r.writer.check()
  r.checkpoints.save(state, run)
  return run


def _end_epoch(
  r: Resources,
  run: RunState,
  model: PrunableModel,
  stage: stages.Stage,
  state: TrainState,
  compiled: loop.CompiledStage,
  hooks: HookList,
) -> RunState:
  """Evaluates on the validation split, and hands the metrics to the hooks."""
  started = time.perf_counter()
  searches, epoch = stage.searches, run.cursor.epoch + 1
  gates, counts = compiled.gates(state.gate_logits, run.cursor.epoch)
  validation = r.evaluator(model.net, state.variables(gates), 'validation')
  budget = model.budget(stage.target)
  by_path = channel_gates.by_path(jax.device_get(gates))
  row = metrics.epoch_row(
    stage,
    epoch=epoch,
    epochs_done=run.epochs_done + 1,
    sums=run.sums,
    steps=r.source.steps_per_epoch,
    images=r.source.steps_per_epoch * r.config.batch_size,
    validation=validation,
    counts=counts if searches else None,
    target=budget and budget.relative(by_path),
  )
  run = run.end_epoch(
    row['loss'],
    run.sums['seconds'] + time.perf_counter() - started,
    r.config.top1_key(run.cursor.stage),
    validation['top1'],
  )
  hooks.end_epoch(row, by_path if searches else {})
  cut = stages.next_cut(r.config.stages, run.cursor.stage)
  if budget and cut and epoch == stage.epochs:
    warning = advice.undecided_for_target(by_path, cut)
    if warning:
      show(warning)
  # A target is met by ranking channels, whatever the gates are.
  if searches and cut and not cut.target:
    run = run.count_closed(prune.closed_layers(model, gates))
    if 2 * epoch >= stage.epochs:
      warning = prune.pruning_warning(model, state.gate_logits, cut)
      if warning:
        show(warning)
  return run


# The end.


def _finish(
  r: Resources,
  run: RunState,
  model: PrunableModel,
  stage: stages.Stage,
  state: TrainState,
) -> dict[str, Any]:
  """The last evaluation, the only one on test; the model and the result."""
  delta = stage.hyperparams(max(stage.epochs - 1, 0)).delta
  gates = channel_gates.gate_values(state.gate_logits, delta)
  variables = state.variables(gates)
  final, test = (
    r.evaluator(model.net, variables, split) for split in ('validation', 'test')
  )
  names = r.source.contents.class_names
  result = result_file.make_result(r.config, run, model, names, final, test)
  if not run.keep:
    r.writer.write_architecture(model.full_gates)
  r.writer.write_result(variables, result)
  skipped = processes.allgather_json(r.source.broken_names())
  broken = {name for of_process in skipped for name in of_process}
  if broken:
    print(f'{len(broken)} images could not be decoded and were skipped')
  return result
