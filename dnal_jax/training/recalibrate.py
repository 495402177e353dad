"""Renews the running averages of BatchNorm after a network was pruned.

Ours; not in the paper. The averages that a search leaves are those of maps
whose channels were multiplied by soft gates.
"""

from typing import Any

import jax

from dnal_jax.data.sources import Source
from dnal_jax.parallel import mesh


def renewed_statistics(
  net: Any,
  variables: Any,
  source: Source,
  *,
  first_step: int,  # in the run, of the batches
  batches: int,
) -> Any:
  """The collection `batch_stats` after training batches on which nothing else
  is trained: those of the steps from `first_step` on. With a momentum of 0.9,
  60 batches leave 0.2 % of what there was."""

  @jax.jit
  def update(variables, inputs, step):
    batch = mesh.batch_sharded(source.train_batch(inputs, step))
    _, updated = net.apply(
      variables, batch.image, train=True, mutable=['batch_stats']
    )
    return mesh.replicated({**variables, **updated})

  for step in range(first_step, first_step + batches):
    variables = update(variables, source.inputs(step, 1), step)
  return variables['batch_stats']
