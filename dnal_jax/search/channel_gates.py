"""The paper's mathematics: what a gate is, costs and decides.

A gate logit s is one number per channel; trees of gate_logits and of gate values
have the network's `gates` collection as their structure: trees in, trees out.

  open     g = 1                       while the weights warm up
  soft     g = sigmoid(delta * s)      while the architecture is searched
  hard     g = 1 if sigmoid(delta_end * s) > threshold else 0

Source: Guo et al. 2022, and the authors' code for the constants.
"""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from dnal_jax import nn

Tree = Any


def open_gates(gate_logits: Tree) -> Tree:
  """g = 1: the network without gates."""
  return jax.tree.map(jnp.ones_like, gate_logits)


def soft(gate_logits: Tree, delta: jax.typing.ArrayLike) -> Tree:
  """g = sigmoid(delta * s), a step function as delta grows."""
  return jax.tree.map(lambda s: jax.nn.sigmoid(delta * s), gate_logits)


def gate_values(gate_logits: Tree, delta: jax.typing.ArrayLike | None) -> Tree:
  """The gates at a delta, or open ones where there is none."""
  return open_gates(gate_logits) if delta is None else soft(gate_logits, delta)


def hard(
  gate_logits: Tree, delta_end: float, threshold: float, multiple: int = 1
) -> Tree:
  """g = 1 where the soft gate at `delta_end` is above `threshold`, else 0.

  With a multiple, where any gate of a layer is open, the largest gate_logits of
  the closed ones open too, until the number of open ones divides by it or all
  are (ours: odd widths can be slower than wider ones).
  """

  def layer(s, g):
    opened = (g > threshold).sum()
    wanted = -(-opened // multiple) * multiple
    rank = jnp.argsort(jnp.argsort(-s))  # 0 for the largest, ties in order
    return (rank < wanted).astype(g.dtype)

  return jax.tree.map(layer, gate_logits, soft(gate_logits, delta_end))


def delta_schedule(epoch: int, epochs: int, delta_end: float) -> float:
  """delta_end ** ((k + 1) / K) in search epoch k of K; the last is delta_end.

  Deviation: none. delta = 1 is never used, as in the authors' code.
  """
  return delta_end ** ((epoch + 1) / epochs)


def penalty(gate_logits: Tree) -> jax.Array:
  """Sum over all gates of sigmoid(s): an L1 norm of the gates at delta = 1.

  Unnormalised, without delta and without cost weights, as in the authors'
  code. Multiplied by lambda it is added to the loss.
  """
  return sum(
    (jax.nn.sigmoid(s).sum() for s in jax.tree.leaves(gate_logits)),
    jnp.zeros(()),
  )


def by_path(gates: Tree) -> dict[str, jax.Array]:
  """The gates by their path, the key they have in `architecture.json`."""
  return {
    '/'.join(k.key for k in path[:-1]): g
    for path, g in jax.tree_util.tree_leaves_with_path(gates)
  }


def kept_channels(
  hard_gates: Tree, present: nn.Keep, known: nn.Keep
) -> nn.Keep:
  """The surviving channel ids of every gate in `known`.

  `present` are the channels behind each gate of the network as it is now; a
  gate of `known` that it lacks has vanished before, and stays empty.
  """
  values = by_path(jax.device_get(hard_gates))
  return {
    path: tuple(present[path][i] for i in np.flatnonzero(values[path]))
    if path in present
    else ()
    for path in known
  }


def count_by_state(gates: Tree) -> jax.Array:
  """[3] int32: how many gates are below 0.1, undecided, and above 0.9."""
  g = jnp.concatenate([jnp.zeros(0), *jax.tree.leaves(gates)])
  low, high = (g < 0.1).sum(), (g > 0.9).sum()
  return jnp.stack([low, g.size - low - high, high])
