"""Losses of a batch of logits."""

import jax
import optax


def cross_entropy(
  logits: jax.Array, label: jax.Array, smoothing: float = 0.0
) -> jax.Array:
  """[B, classes], [B] -> [B] float32, in nats, with the share `smoothing` of
  the target spread evenly over all classes (1512.00567, section 7)."""
  losses = optax.softmax_cross_entropy_with_integer_labels(logits, label)
  if not smoothing:
    return losses
  evenly = -jax.nn.log_softmax(logits).mean(-1)
  return (1 - smoothing) * losses + smoothing * evenly
