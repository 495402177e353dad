"""The paper's formulas: the values of gates, their penalty and their decision.

A gate logit s is one number per channel. Gate logits and gate values are
pytrees with the structure of the network's variable collection `gates`: nested
dicts with leaves [n] float32, one leaf per gate of n channels.

    open  in the warm-up  g = 1
    soft  in the search   g = sigmoid(delta * s)
    hard  to prune        g = 1 if sigmoid(delta_end * s) > threshold else 0

Source: Guo et al. 2022, and the authors' code for the constants.
"""

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from dnal_jax import nn, trees

Tree = Any
# Gates below and above are closed and open for good; others are undecided.
LOW, HIGH = 0.1, 0.9


def open_gates(gate_logits: Tree) -> Tree:
  """g = 1: the network without gates."""
  return jax.tree.map(jnp.ones_like, gate_logits)


def soft_gates(gate_logits: Tree, delta: jax.typing.ArrayLike) -> Tree:
  """g = sigmoid(delta * s), which approaches a step as delta grows."""
  return jax.tree.map(lambda s: jax.nn.sigmoid(delta * s), gate_logits)


def gate_values(gate_logits: Tree, delta: jax.typing.ArrayLike | None) -> Tree:
  """Soft gates at `delta`; open gates if it is None."""
  if delta is None:
    return open_gates(gate_logits)
  return soft_gates(gate_logits, delta)


def hard_gates(
  gate_logits: Tree, delta_end: float, threshold: float, multiple: int = 1
) -> Tree:
  """g = 1 where the soft gate at `delta_end` is above `threshold`, else 0.

  With a multiple, a gate with any open channel opens its closed channels of the
  largest logits, too, until the number of open channels is a multiple or all
  are open (ours: odd widths can be slower than wider ones).
  """

  def layer(s, g):
    above = (g > threshold).sum()
    wanted = -(-above // multiple) * multiple
    rank = jnp.argsort(jnp.argsort(-s))  # 0 for the largest; ties in order
    return (rank < wanted).astype(g.dtype)

  return jax.tree.map(layer, gate_logits, soft_gates(gate_logits, delta_end))


def delta_schedule(epoch: int, epochs: int, delta_end: float) -> float:
  """delta_end ** ((k + 1) / K) in search epoch k of K.

  It is delta_end in the last epoch and never 1, as in the authors' code.
  """
  return delta_end ** ((epoch + 1) / epochs)


def penalty(gate_logits: Tree) -> jax.Array:
  """The sum of sigmoid(s) over all gates: their L1 norm at delta = 1.

  Neither normalised nor weighted by cost, and without delta, as in the authors'
  code. The loss adds lambda times the penalty.
  """
  return sum(
    (jax.nn.sigmoid(s).sum() for s in jax.tree.leaves(gate_logits)),
    jnp.zeros(()),
  )


def by_path(gates: Tree) -> dict[str, jax.Array]:
  """{path of a gate, as in architecture.json: its values [n]}."""
  return {
    '/'.join(k.key for k in path[:-1]): g
    for path, g in jax.tree_util.tree_leaves_with_path(gates)
  }


def from_paths(gates: Mapping[str, Any]) -> Tree:
  """The tree of {path of a gate: its values}."""
  return trees.unflatten({f'{path}/g': g for path, g in gates.items()})


def kept_channels(gates: Tree, present: nn.Keep, known: nn.Keep) -> nn.Keep:
  """The ids of the channels that gates of 0 and 1 keep, for all of `known`.

  `present` are the channels of each gate of the network as it is now. A gate of
  `known` that is not present was pruned earlier and keeps none.
  """
  values = by_path(jax.device_get(gates))
  return {
    path: tuple(present[path][i] for i in np.flatnonzero(values[path]))
    if path in present
    else ()
    for path in known
  }


def count_by_state(gates: Tree) -> jax.Array:
  """[3] int32: how many values are below LOW, undecided, and above HIGH."""
  g = jnp.concatenate([jnp.zeros(0), *jax.tree.leaves(gates)])
  low, high = (g < LOW).sum(), (g > HIGH).sum()
  return jnp.stack([low, g.size - low - high, high])
