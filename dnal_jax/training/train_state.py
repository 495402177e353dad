"""All that a train step changes, and its state at the start of a stage."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from dnal_jax import trees
from dnal_jax.training import optimizer
from dnal_jax.training.stages import Stage


class TrainState(NamedTuple):
  """All that a train step changes; what a checkpoint holds."""

  step: jax.Array  # int32: steps done in this stage
  params: Any
  gate_logits: Any  # the structure of the `gates` collection
  batch_stats: Any
  opt_state: Any  # over the leaves that the stage trains
  # Running average of (params, batch_stats); () in a stage without one.
  average: tuple[Any, Any] | tuple[()] = ()

  @property
  def result(self) -> tuple[Any, Any]:
    """(params, batch_stats) that are evaluated and handed on."""
    return self.average or (self.params, self.batch_stats)

  def variables(self, gates: Any) -> dict[str, Any]:
    """What a network is evaluated with, given the values of its gates."""
    params, batch_stats = self.result
    return {'params': params, 'batch_stats': batch_stats, 'gates': gates}


def create_train_state(
  stage: Stage, params: Any, gate_logits: Any, batch_stats: Any
) -> TrainState:
  """The state at the start of a stage: new momenta, step 0."""
  trained, _ = split_trained(stage, params, gate_logits)
  # An optimizer's initial state does not depend on its learning rates.
  tx = optimizer.make_optimizer(
    stage.train,
    flat_leaves(params, gate_logits),
    1,
    stage.hyperparams(0).rates,
  )
  step = jnp.zeros((), jnp.int32)
  average: Any = ()
  if stage.ema:  # copies, because a step donates every buffer of its state
    average = jax.tree.map(jnp.copy, (params, batch_stats))
  return TrainState(
    step,
    params,
    gate_logits,
    batch_stats,
    tx.init(trained),
    average,
  )


def flat_leaves(params: Any, gate_logits: Any) -> dict[str, Any]:
  """{path: leaf} of everything that a stage may train; paths begin with
  'params/' or 'gates/'."""
  return trees.flatten({'params': params, 'gates': gate_logits})


def split_trained(
  stage: Stage, params: Any, gate_logits: Any
) -> tuple[dict[str, Any], dict[str, Any]]:
  """({path: leaf} that the stage trains, {path: leaf} that it does not)."""
  flat = flat_leaves(params, gate_logits)
  trains = optimizer.assign_groups(stage.train, flat)
  return (
    {k: v for k, v in flat.items() if k in trains},
    {k: v for k, v in flat.items() if k not in trains},
  )
