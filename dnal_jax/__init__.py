"""dnal_jax: learn a small convolutional network out of a big one, in JAX."""

import os

from dnal_jax.tpu import environment
from dnal_jax.workdir.saved_model import load

__all__ = ['load']

environment.silence_libtpu(os.environ)
