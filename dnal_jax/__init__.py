"""dnal_jax: learn a small convolutional network out of a big one, in JAX."""

from dnal_jax.workdir.saved_model import load

__all__ = ['load']
