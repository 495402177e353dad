"""Runs in the process of the test: no start of Python and JAX to wait for."""

import ast
import contextlib

from configs import quickstart
from dnal_jax import train
from dnal_jax.config import parse_config


def config(*flags, of=quickstart):
  """The config, as nested dicts, that a command line with `flags` has."""
  values = of.get_config()
  for flag in flags:
    key, value = flag.removeprefix('--config.').split('=', 1)
    # Otherwise it is a string without quotes.
    with contextlib.suppress(SyntaxError, ValueError):
      value = ast.literal_eval(value)
    values.update_from_flattened_dict({key: value})
  return values.to_dict()


def run(workdir, *flags, of=quickstart):
  """The result of such a run."""
  values = config(*flags, of=of)
  return train.run(parse_config(values), values, workdir)
