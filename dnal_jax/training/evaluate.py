"""Accuracy on a split, and whether two networks are the same function."""

from collections.abc import Iterator
from typing import Any, NamedTuple

import jax
from jax import lax
import jax.numpy as jnp
import numpy as np

from dnal_jax.data.sources import Source
from dnal_jax.graph import difference
from dnal_jax.parallel import mesh
from dnal_jax.training import step

# Largest difference of logits, relative to the largest logit, that is taken for
# rounding (float32; measured: below 1e-5).
_TOLERANCE = 1e-4


Pair = tuple[Any, Any]  # a network and its variables


class Comparison(NamedTuple):
  """A masked network beside the one that was pruned from it."""

  masked_top1: float  # on the split; shares of 1
  pruned_top1: float
  max_abs_diff: float  # between their logits


class Evaluator:
  """Evaluates networks, in float32, on whole splits of a source."""

  def __init__(self, source: Source):
    self.source = source
    self._sums = jax.jit(self._several, static_argnums=0)
    self._compiled = jax.jit(self._one, static_argnums=0)

  def _one(self, net: Any, variables, inputs, index):
    batch = mesh.batch_sharded(self.source.eval_batch(inputs, index))
    sums, logits = step.eval_step(variables, batch, net=net)
    return mesh.replicated((sums, logits, batch.weight))

  def _several(self, net: Any, variables, inputs, batches):
    """Sums over so many batches, in one loop on the device."""

    def body(index, sums):
      of_batch = self._one(net, variables, inputs, index)[0]
      return jax.tree.map(jnp.add, sums, of_batch)

    zeros = dict.fromkeys(step.EVAL_SUMS, jnp.zeros(()))
    return lax.fori_loop(0, batches, body, zeros)

  def __call__(self, net: Any, variables: Any, split: str) -> dict[str, float]:
    """Mean loss (nats), top1 and top5 (shares of 1) over the split, and its
    number of images."""
    return _means(
      [
        self._sums(net, variables, inputs, batches)
        for inputs, batches in self.source.eval_inputs(split)
      ]
    )

  def compare(self, masked: Pair, pruned: Pair, split: str) -> Comparison:
    """The two networks on every image.

    Raises:
      RuntimeError: their logits differ by more than rounding; names the first
        gate that differs.
    """
    sums, worst, largest = ([], []), 0.0, 0.0
    # By default, GPUs and TPUs multiply float32 in fewer bits, and rounding
    # alone would exceed the tolerance.
    with jax.default_matmul_precision('highest'):
      for inputs, index in self._each(split):
        (of_masked, a, weight), (of_pruned, b, _) = (
          self._compiled(*pair, inputs, index) for pair in (masked, pruned)
        )
        sums[0].append(of_masked)
        sums[1].append(of_pruned)
        seen = np.asarray(weight) > 0
        a, b = np.asarray(a)[seen], np.asarray(b)[seen]
        # numpy's max, because Python's does not propagate NaN.
        worst = float(np.max(abs(a - b), initial=worst))
        largest = float(np.max(abs(a), initial=largest))
    if not worst <= _TOLERANCE * largest:  # also if it is NaN
      gate = self._first_difference(masked, pruned, split)
      raise RuntimeError(
        'equivalence check failed: logits of the pruned and the masked model'
        f' differ by {worst} (logits up to {largest}), first behind gate'
        f' {gate}; nothing was pruned'
      )
    masked_top1, pruned_top1 = (_means(s)['top1'] for s in sums)
    return Comparison(masked_top1, pruned_top1, worst)

  def _each(self, split: str) -> Iterator[tuple[Any, int]]:
    """(inputs, index) of every batch of a split."""
    for inputs, batches in self.source.eval_inputs(split):
      for index in range(batches):
        yield inputs, index

  def _first_difference(
    self, masked: Pair, pruned: Pair, split: str
  ) -> str | None:
    """The first gate behind which the networks differ, on a few images."""
    batch = mesh.jit_replicated(self.source.eval_batch)
    images = batch(*next(self._each(split))).image
    images, *variables = jax.device_get((images, masked[1], pruned[1]))
    a, b = zip((masked[0], pruned[0]), variables, strict=True)
    with mesh.single_device(), jax.default_matmul_precision('highest'):
      return difference.first_difference(*a, *b, images[:8], _TOLERANCE)


def _means(sums: list[dict[str, jax.Array]]) -> dict[str, float]:
  """The batches' weighted sums, as means over their images; and these."""
  fetched = jax.device_get(sums)
  total = {key: sum(float(s[key]) for s in fetched) for key in fetched[0]}
  images = total.pop('images')
  means = {key: value / images for key, value in total.items()}
  return {**means, 'images': round(images)}
