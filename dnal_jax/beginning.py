"""Where a run begins, and where it goes on.

At its newest checkpoint; else at the network that `init_from` names; else with
random weights. A run that begins with another's network counts the stages that
are thereby done, so that its steps have the same numbers, and hence the same
batches, as in the other run.
"""

import dataclasses
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp

from dnal_jax import trees
from dnal_jax.config import RunConfig
from dnal_jax.parallel import mesh
from dnal_jax.resources import Resources
from dnal_jax.training import loop, stages
from dnal_jax.training.prune import PrunableModel
from dnal_jax.training.train_state import TrainState, create_train_state
from dnal_jax.workdir import parent
from dnal_jax.workdir.run_state import RunState


def restore_or_start(
  r: Resources,
) -> tuple[RunState, PrunableModel, TrainState]:
  """The newest checkpoint, else the beginning of the run.

  Raises:
    UserError: `init_from` has no network that fits the config and the data.
  """

  def model_of(run: RunState) -> PrunableModel:
    return PrunableModel.create(full, r.config.image_shape, run.keep)

  def shapes_of(run: RunState) -> TrainState:
    return loop.state_shapes(
      stage_of(r.config, run), model_of(run).graph.shapes
    )

  full, data = r.config.build(), r.config.data
  restored = r.checkpoints.newest(shapes_of)
  if restored is not None:
    run, state = restored
    run.check_data(data.title, r.source.images)
    broken = run.broken_records(jax.process_index(), jax.process_count())
    r.source.broken.update(broken)
    print(f'going on with {run.describe()}')
    return run, model_of(run), state
  run = RunState(images=r.source.images)
  if r.config.init_from is None:
    model = model_of(run)
    variables = _random_variables(r.config, model)
  else:
    run, model, variables = _from_parent(r, run)
  run, state = begin_stage(
    r,
    run,
    variables['params'],
    model.initial_gate_logits(),
    variables['batch_stats'],
  )
  return run, model, state


def begin_stage(
  r: Resources, run: RunState, params: Any, gate_logits: Any, batch_stats: Any
) -> tuple[RunState, TrainState]:
  """The run's next stage, or its first one, with a new optimizer state."""
  stage = r.config.stages[len(run.result.stages)]
  create = mesh.jit_replicated(partial(create_train_state, stage))
  state = create(params, gate_logits, batch_stats)
  return _counting(r, run, stage), state


def stage_of(config: RunConfig, run: RunState) -> stages.Stage:
  """The stage under way, at the learning rates that restarts have left."""
  stage = config.stages[run.cursor.stage]
  return stage if run.lr_factor == 1 else stage.scaled(run.lr_factor)


def _counting(r: Resources, run: RunState, stage: stages.Stage) -> RunState:
  steps = stage.epochs * r.source.steps_per_epoch
  return run.begin_stage(stage.name, stage.epochs, steps)


def _random_variables(config: RunConfig, model: PrunableModel) -> Any:
  image = jnp.zeros((1, *config.image_shape))
  init = mesh.jit_replicated(model.net.init)
  return init(jax.random.key(config.seed), image)


def _from_parent(
  r: Resources, run: RunState
) -> tuple[RunState, PrunableModel, Any]:
  """The run behind the stages that its parent has done, and what that has
  trained."""
  config = r.config
  found = parent.read(config, r.source.contents)
  model = PrunableModel.create(config.build(), config.image_shape, found.keep)
  variables = _random_variables(config, model)
  if found.new_head:
    flat, kept = trees.flatten(variables), trees.flatten(found.variables)
    new = {path: leaf for path, leaf in flat.items() if path not in kept}
    variables = trees.unflatten({**kept, **new})
  else:
    variables = found.variables
  for stage in config.stages[: config.first_stage]:
    run = _counting(r, run, stage)
  top1 = run.result.top1
  if config.init_at == 'warmup':
    r.writer.write_warmup(found.variables, model.full_gates)
    warmup = r.evaluator(model.net, found.variables, 'validation')['top1']
    top1 = {**top1, 'warmup': warmup}
  if found.keep:
    r.writer.write_architecture(found.keep)
  result = dataclasses.replace(run.result, top1=top1)
  run = dataclasses.replace(run, keep=found.keep, result=result)
  names = ', '.join(f"'{s.name}'" for s in config.stages[: config.first_stage])
  print(
    f"begins with '{config.init_from}', at its {config.init_at}"
    + (f', which takes the place of {names}' if names else '')
    + (', with a new last layer for other classes' if found.new_head else '')
  )
  return run, model, variables
