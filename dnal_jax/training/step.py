"""One train step and one eval step, the same for every stage. Pure functions.

B batch, H height, W width, C channels. The step differentiates by what the
stage trains and by nothing else, so a search step has no gradients of
convolution weights in it.
"""

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import optax

from dnal_jax import trees
from dnal_jax.data.batches import Batch
from dnal_jax.search import channel_gates
from dnal_jax.search.budget import Budget
from dnal_jax.search.channel_gates import by_path
from dnal_jax.training import optimizer
from dnal_jax.training.losses import cross_entropy, distillation
from dnal_jax.training.stages import Stage, StepHyperparams
from dnal_jax.training.train_state import TrainState, flat_leaves, split_trained

# What `eval_step` sums up, float32 each.
EVAL_SUMS = ('loss', 'top1', 'top5', 'images')


def train_step(
  state: TrainState,
  batch: Batch,
  hyperparams: StepHyperparams,
  teacher_variables: Any = None,
  *,
  net: Any,
  stage: Stage,
  steps_per_epoch: int,
  grad_accum_steps: int = 1,
  budget: Budget | None = None,  # of a stage with a target
  teacher_net: Any = None,  # of a stage with a teacher
) -> tuple[TrainState, dict[str, jax.Array]]:
  """One step of any stage: loss = cross-entropy + lambda * penalty, with the
  stage's `hyperparams` of the epoch; with a target, no penalty, but gates held
  at a cost (`search.budget`); with a teacher, which predicts as in evaluation,
  a second term (`stages.Distill`).

  With `grad_accum_steps` N the batch is processed in N parts, each normalised
  by its own moments, in 1/N of the memory for feature maps: gradients and
  updates of BatchNorm's running averages are means over the parts (ours).

  The network computes in the dtype of the images; parameters, statistics and
  the loss are float32. Metrics 'loss' (the cross-entropy alone) and 'correct'
  are sums over the batch; 'gate_sum' is the sum over all gates of sigmoid(s),
  'gates' (in a search) the number that is low, undecided and high [3], both
  before the update; 'finite' is False where the loss or a gradient is NaN or
  infinite.
  """
  paths = flat_leaves(state.params, state.gate_logits)
  rates = hyperparams.rates
  tx = optimizer.make_optimizer(stage.train, paths, steps_per_epoch, rates)
  progress = _progress(state, stage, hyperparams, steps_per_epoch)
  delta = _delta(stage, hyperparams, progress)
  if budget is not None:
    logits = budget.at_level(by_path(state.gate_logits), delta, progress)
    state = state._replace(gate_logits=channel_gates.from_paths(logits))
  trained, frozen = split_trained(stage, state.params, state.gate_logits)

  loss = partial(
    _loss,
    frozen=frozen,
    batch_stats=state.batch_stats,
    delta=delta,
    penalty=hyperparams.penalty,
    net=net,
    stage=stage,
    teacher=(teacher_net, teacher_variables),
  )
  gradients = partial(jax.grad(loss, has_aux=True), trained)
  grads, batch_stats, metrics = _in_parts(gradients, batch, grad_accum_steps)
  if budget is not None:
    grads = _along_level(budget, grads, state.gate_logits, delta, progress)
  # The sum is not finite if any of its terms is not.
  total = metrics['loss'] + sum(g.sum() for g in grads.values())
  metrics['finite'] = jnp.isfinite(total)
  updates, opt_state = tx.update(grads, state.opt_state, trained)
  after: Any = optax.apply_updates(trained, updates)
  tree = trees.unflatten({**frozen, **after})
  return _advanced(state, tree, batch_stats, opt_state, stage.ema), metrics


def _advanced(
  state: TrainState, tree: Any, batch_stats: Any, opt_state: Any, ema: float
) -> TrainState:
  """The state a step later, with the parameters and gate logits of `tree`."""
  params = tree['params']
  average = state.average
  if average:
    average = _averaged(average, (params, batch_stats), ema, state.step)
  return state._replace(
    step=state.step + 1,
    params=params,
    gate_logits=tree.get('gates', {}),
    batch_stats=batch_stats,
    opt_state=opt_state,
    average=average,
  )


def _progress(
  state: TrainState,
  stage: Stage,
  hyperparams: StepHyperparams,
  steps_per_epoch: int,
) -> jax.Array:
  """The share of the stage that is done after this step; 0 where nothing
  depends on it."""
  if not stage.by_step:
    return jnp.zeros(())
  assert hyperparams.epochs is not None
  return (state.step + 1) / (hyperparams.epochs * steps_per_epoch)


def _delta(
  stage: Stage, hyperparams: StepHyperparams, progress: jax.Array
) -> Any:
  """The steepness of the gates in this step; None: they are open."""
  if not stage.searches or stage.delta_by == 'epoch':
    return hyperparams.delta
  assert hyperparams.delta_end is not None
  return hyperparams.delta_end**progress


def _along_level(
  budget: Budget,
  grads: dict[str, Any],
  gate_logits: Any,
  delta: Any,
  progress: jax.Array,
) -> dict[str, Any]:
  """The gradients {path: leaf}, those of the gates held at a cost."""
  tree = trees.unflatten(grads)
  of_gates, logits = by_path(tree.get('gates', {})), by_path(gate_logits)
  of_gates = budget.along_level(of_gates, logits, delta, progress)
  return trees.flatten({**tree, 'gates': channel_gates.from_paths(of_gates)})


def eval_step(
  variables: Any, batch: Batch, *, net: Any
) -> tuple[dict[str, jax.Array], jax.Array]:
  """Weighted sums over the batch, and the logits [B, classes] float32."""
  logits = net.apply(variables, batch.image)
  _, top5 = jax.lax.top_k(logits, min(5, logits.shape[-1]))
  hit = top5 == batch.label[:, None]
  weight = batch.weight
  sums = {
    'loss': (cross_entropy(logits, batch.label) * weight).sum(),
    'top1': (hit[:, 0] * weight).sum(),
    'top5': (hit.any(-1) * weight).sum(),
    'images': weight.sum(),
  }
  return sums, logits


def _loss(
  trained: dict[str, Any],
  batch: Batch,
  *,
  frozen: dict[str, Any],
  batch_stats: Any,
  delta: Any,
  penalty: Any,
  net: Any,
  stage: Stage,
  teacher: tuple[Any, Any],  # a network and its variables
) -> tuple[jax.Array, tuple[Any, dict[str, jax.Array]]]:
  """The loss as a function of the leaves that train; beside it the updated
  statistics and the metrics."""
  tree = trees.unflatten({**trained, **frozen})
  gate_logits = tree.get('gates', {})
  gates = channel_gates.gate_values(gate_logits, delta)
  variables = {
    'params': tree['params'],
    'gates': gates,
    'batch_stats': batch_stats,
  }
  logits, updated = net.apply(
    variables, batch.image, train=True, mutable=['batch_stats']
  )
  losses = cross_entropy(logits, batch.label, stage.label_smoothing)
  gate_sum = channel_gates.penalty(gate_logits)
  metrics = {
    'loss': losses.sum(),
    'correct': (logits.argmax(-1) == batch.label).sum(),
    'gate_sum': gate_sum,
  }
  if stage.distill.teacher is not None:
    teacher_net, variables = teacher
    wanted = teacher_net.apply(variables, batch.image)
    distill = stage.distill
    learned = distillation(logits, wanted, distill.temperature)
    losses = (1 - distill.weight) * losses + distill.weight * learned
  if stage.searches:
    metrics['gates'] = channel_gates.count_by_state(gates)
  total = losses.mean()
  if not stage.target:
    total = total + penalty * gate_sum
  return total, (updated['batch_stats'], metrics)


def _in_parts(gradients, batch: Batch, parts: int) -> tuple[Any, Any, Any]:
  """Means of gradients and statistics, and metrics, over parts of the batch."""
  if parts == 1:
    grads, (batch_stats, metrics) = gradients(batch)
    return grads, batch_stats, metrics
  # A part is every n-th row, so that each device has equally many rows of it
  # and none are exchanged.
  batches = jax.tree.map(
    lambda a: jnp.moveaxis(a.reshape(-1, parts, *a.shape[1:]), 1, 0), batch
  )

  def one(sums, part):
    grads, (batch_stats, metrics) = gradients(part)
    return jax.tree.map(jnp.add, sums, (grads, batch_stats)), metrics

  grads, (batch_stats, _) = jax.eval_shape(
    gradients, jax.tree.map(lambda a: a[0], batches)
  )
  zeros = jax.tree.map(
    lambda a: jnp.zeros(a.shape, a.dtype), (grads, batch_stats)
  )
  sums, of_parts = jax.lax.scan(one, zeros, batches)
  metrics = jax.tree.map(lambda a: a[-1], of_parts)  # gates: the same in all
  for key in ('loss', 'correct'):
    metrics[key] = of_parts[key].sum()
  return *jax.tree.map(lambda a: a / parts, sums), metrics


def _averaged(average, latest, decay: float, step: jax.Array):
  """decay * average + (1 - decay) * latest; the decay is smaller in the first
  steps, so that the initial weights are forgotten (TensorFlow's rule)."""
  now = jnp.minimum(decay, (1.0 + step) / (10.0 + step))
  return jax.tree.map(lambda a, b: now * a + (1 - now) * b, average, latest)
