"""Ranks the channels of a trained network for pruning, without a search.

`search/ranking.py` has the formulas; here is what they need of the network: its
weights, and gradients on training images.
"""

from typing import Any

import jax
import jax.numpy as jnp

from dnal_jax.data.sources import Source
from dnal_jax.parallel import mesh
from dnal_jax.search import channel_gates, ranking
from dnal_jax.search.budget import Budget, Scores
from dnal_jax.training.losses import cross_entropy

# Of training images, for 'taylor'.
BATCHES = 60


def scores(
  by: ranking.Ranking,
  net: Any,
  variables: Any,  # with open gates
  budget: Budget,
  source: Source,
  *,
  first_step: int,  # in the run, of the batches
) -> Scores:
  """{gate path: [n]}, the larger the better, by one of `ranking.RANKINGS` but
  'gates'."""
  params = variables['params']
  match by:
    case 'uniform':
      return ranking.uniform(budget.graph)
    case 'uniform_scale':
      return ranking.uniform_by_scale(budget.graph, params)
    case 'scale':
      return ranking.by_scale(budget.graph, params)
    case 'taylor':
      squares = squared_gradients(
        net, variables, source, first_step=first_step, batches=BATCHES
      )
      return ranking.by_taylor(squares, budget)
  raise ValueError(f"channels are ranked by their gates with '{by}'")


def squared_gradients(
  net: Any, variables: Any, source: Source, *, first_step: int, batches: int
) -> Scores:
  """{gate path: [n] float32}, the squared gradients of the cross-entropy by
  open gates, as in evaluation; the mean over training batches."""

  @jax.jit
  def add(total, variables, inputs, step):
    batch = mesh.batch_sharded(source.train_batch(inputs, step))

    def loss(gates):
      logits = net.apply({**variables, 'gates': gates}, batch.image)
      return cross_entropy(logits, batch.label).mean()

    grads = jax.grad(loss)(variables['gates'])
    total = jax.tree.map(lambda t, g: t + g**2 / batches, total, grads)
    return mesh.replicated(total)

  total = jax.tree.map(jnp.zeros_like, variables['gates'])
  for step in range(first_step, first_step + batches):
    total = add(total, variables, source.inputs(step, 1), step)
  return jax.device_get(channel_gates.by_path(total))
