"""Losses of a batch of logits."""

import jax
import jax.numpy as jnp
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


def distillation(
  logits: jax.Array, teacher_logits: jax.Array, temperature: float
) -> jax.Array:
  """[B, classes] twice -> [B], in nats: T^2 * KL(p || q), where p and q are the
  teacher's and the student's softmax of logits / T (1503.02531, section 2)."""
  log_p = jax.nn.log_softmax(teacher_logits / temperature)
  log_q = jax.nn.log_softmax(logits / temperature)
  return temperature**2 * (jnp.exp(log_p) * (log_p - log_q)).sum(-1)
