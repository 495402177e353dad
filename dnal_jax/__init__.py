"""dnal_jax: learn a small convolutional network out of a big one, in JAX."""

import os
from typing import TYPE_CHECKING, Any

from dnal_jax.tpu import environment

if TYPE_CHECKING:
  from dnal_jax.workdir.saved_model import load

__all__ = ['__version__', 'load']
__version__ = '0.1.0'

environment.silence_libtpu(os.environ)


def __getattr__(name: str) -> Any:
  """`load`, imported on first use: every command imports this module first, and
  must handle signals before it imports JAX, which takes seconds."""
  if name == 'load':
    from dnal_jax.workdir import saved_model

    return saved_model.load
  raise AttributeError(f"module '{__name__}' has no attribute '{name}'")


def __dir__() -> list[str]:
  return sorted({*globals(), *__all__})
