"""Networks by name."""

from dnal_jax.models.network import Network, Variant
from dnal_jax.models.registry import get, register
from dnal_jax.models.zoo import NETWORKS

__all__ = ['NETWORKS', 'Network', 'Variant', 'get', 'register']
