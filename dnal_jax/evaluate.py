"""Accuracy on a split, and whether two networks are the same function."""

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from dnal_jax import compact, step
from dnal_jax.data import Data, batches, memory

# Largest difference of logits, relative to the largest logit, that rounding
# explains (float32; seen: below 1e-5).
_TOLERANCE = 1e-4


class Evaluator:
  """Evaluates networks on whole splits that lie on the device."""

  def __init__(self, data: Data, batch_size: int):
    self._batch = partial(batches.eval_batch, batch_size=batch_size, data=data)
    self._batch_size = batch_size
    self.normalise = partial(batches.normalise, data=data)
    self._compiled = jax.jit(self._one, static_argnums=0)

  def _one(self, net: Any, variables, images, labels, start):
    batch = self._batch(images, labels, start)
    return step.eval_step(variables, batch, net=net)

  def __call__(
    self, net: Any, variables: Any, split: memory.Split
  ) -> dict[str, float]:
    """Mean loss (nats), top1 and top5 (shares of 1) over the split."""
    sums = jax.device_get(
      [
        self._compiled(net, variables, *split, start)[0]
        for start in range(0, len(split.labels), self._batch_size)
      ]
    )
    total = {key: sum(float(s[key]) for s in sums) for key in sums[0]}
    images = total.pop('images')
    return {key: value / images for key, value in total.items()}

  def logits(
    self, net: Any, variables: Any, split: memory.Split
  ) -> np.ndarray:  # [N, classes] float32
    """Logits of every image of the split, in order."""
    starts = range(0, len(split.labels), self._batch_size)
    scores = [
      np.asarray(self._compiled(net, variables, *split, start)[1])
      for start in starts
    ]
    return np.concatenate(scores)[: len(split.labels)]


def same_function(
  evaluate: Evaluator,
  gated: tuple[Any, Any],
  small: tuple[Any, Any],
  split: memory.Split,
) -> float:
  """Largest absolute difference between the logits of a hard-gated and a cut
  network, each given as (net, variables), over the split.

  Raises:
    RuntimeError: it is more than rounding; names the first gate that differs.
  """
  # GPUs and TPUs multiply float32 in fewer bits by default; a difference of
  # rounding would look like one of functions.
  with jax.default_matmul_precision('highest'):
    a, b = (evaluate.logits(*pair, split) for pair in (gated, small))
  worst, largest = float(abs(a - b).max()), float(abs(a).max())
  if worst <= _TOLERANCE * largest:  # false for NaN too
    return worst
  images = evaluate.normalise(jnp.asarray(split.images[:8]))
  with jax.default_matmul_precision('highest'):
    gate = compact.first_difference(*gated, *small, images, _TOLERANCE)
  raise RuntimeError(
    f'the cut network differs from the hard-gated one by {worst} (logits up'
    f' to {largest}), first behind gate {gate}; the run stays uncut'
  )
