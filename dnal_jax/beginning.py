"""Where a run begins, where it goes on, and how each of its stages begins.

A run begins at its newest checkpoint; else at the network that `init_from`
names; else with random weights. A run that begins with another's network counts
the stages that are thereby done, so that its steps have the same numbers, and
hence the same batches, as in the other run. A stage begins with pruning, if it
asks for it.
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
from dnal_jax.search import channel_gates, ranking
from dnal_jax.search.budget import kept_ids
from dnal_jax.training import importance, loop, prune, recalibrate, stages
from dnal_jax.training.progress_bar import show
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
    if r.config.stages[0].prunes:
      run, model = _narrower(r, run, model)
    variables = _random_variables(r.config, model)
  else:
    run, model, variables = _from_parent(r, run)
  start = (variables['params'], variables['batch_stats'])
  logits = model.initial_gate_logits()
  if r.config.init_from is not None and r.config.init_at == 'warmup':
    return _pruned_if_asked(r, run, model, *start, logits)
  run, state = begin_stage(r, run, *start, logits)
  return run, model, state


def enter_next_stage(
  r: Resources, run: RunState, model: PrunableModel, state: TrainState
) -> tuple[RunState, PrunableModel, TrainState]:
  """Prunes the network if the next stage asks for it, and begins the stage."""
  if stages.after_warmup(r.config.stages) == run.cursor.stage + 1:
    gates = channel_gates.open_gates(state.gate_logits)
    r.writer.write_warmup(state.variables(gates), model.full_gates)
  return _pruned_if_asked(r, run, model, *state.result, state.gate_logits)


def _pruned_if_asked(
  r: Resources,
  run: RunState,
  model: PrunableModel,
  params: Any,
  batch_stats: Any,
  gate_logits: Any,
) -> tuple[RunState, PrunableModel, TrainState]:
  """The beginning of the next stage, with a smaller network if it prunes."""
  cut = stages.next_cut(r.config.stages, run.cursor.stage)
  if cut is not None and cut.stages_ahead == 1:
    budget, scores = model.budget(cut.target), None
    if cut.by != 'gates':
      assert budget is not None
      gates = channel_gates.open_gates(gate_logits)
      variables = {'params': params, 'batch_stats': batch_stats, 'gates': gates}
      scores = importance.scores(
        *(cut.by, model.net, variables, budget, r.source),
        first_step=run.steps_of_stages,
      )
    pruned = prune.prune_model(
      *(model, params, gate_logits, batch_stats, cut),
      scores=scores,
      evaluator=r.evaluator,
      on_decision=r.writer.write_architecture,
    )
    shares = budget.reached(pruned.keep) if budget else {}
    model, params = pruned.model, pruned.variables['params']
    batch_stats = pruned.variables['batch_stats']
    gate_logits = model.initial_gate_logits()
    run = run.prune(pruned.keep, *pruned.comparison)
    batches = r.config.stages[run.cursor.stage + 1].recalibrate_batches
    if batches:
      batch_stats = _recalibrated(r, run, pruned, batches)
    reached = ''.join(f', {k} {s:.3f} of the target' for k, s in shares.items())
    masked, small, _ = pruned.comparison
    show(
      f'pruned to {model.kept_channels} of {model.gated_channels} gated'
      f' channels{reached}: validation {masked:.2%} masked, {small:.2%} pruned'
    )
  run, state = begin_stage(r, run, params, batch_stats, gate_logits)
  return run, model, state


def _recalibrated(
  r: Resources, run: RunState, pruned: prune.Pruned, batches: int
) -> Any:
  """The pruned network's statistics of BatchNorm, renewed."""
  net, variables = pruned.model.net, pruned.variables
  batch_stats = recalibrate.renewed_statistics(
    net, variables, r.source, first_step=run.steps_of_stages, batches=batches
  )
  variables = {**variables, 'batch_stats': batch_stats}
  top1 = r.evaluator(net, variables, 'validation')['top1']
  show(f'validation {top1:.2%} with statistics renewed on {batches} batches')
  return batch_stats


def begin_stage(
  r: Resources, run: RunState, params: Any, batch_stats: Any, gate_logits: Any
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


def _narrower(
  r: Resources, run: RunState, model: PrunableModel
) -> tuple[RunState, PrunableModel]:
  """The network of the channels that the first stage keeps: the same share of
  each gate, as nothing is trained yet."""
  stage = r.config.stages[0]
  budget = model.budget(stage.prune_to)
  assert budget is not None
  masks = budget.decide(ranking.uniform(model.graph), stage.channel_multiple)
  keep = kept_ids(model.full_graph, masks)
  r.writer.write_architecture(keep)
  small = model.with_channels(keep)
  print(
    f'begins with {small.kept_channels} of {small.gated_channels} gated'
    ' channels, the same share of each gate'
  )
  return dataclasses.replace(run, keep=keep), small


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
  flat, trained = trees.flatten(variables), trees.flatten(found.variables)
  variables = trees.unflatten({**flat, **trained})
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
