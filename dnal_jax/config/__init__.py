"""Config files and what becomes of them: from a file to a checked run."""

from dnal_jax.config.files import read_config
from dnal_jax.config.run_config import NetworkConfig, RunConfig, parse_config

__all__ = ['NetworkConfig', 'RunConfig', 'parse_config', 'read_config']
