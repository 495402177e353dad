"""dnal_jax: learn a small convolutional network out of a big one, in JAX."""

from dnal_jax.folder import load

__all__ = ['load']
