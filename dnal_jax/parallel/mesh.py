"""Devices side by side, each with its share of every batch.

There is one mesh, of one axis, over all devices of all hosts: JAX's current
one (`jax.set_mesh`), so that nothing needs to be handed down to layers. Without
one, or on a single device, everything here is the identity. What trains is the
same on all devices; sums over a batch, gradients and the statistics of
BatchNorm among them, are those of the global batch, because under `jit` a sum
is a sum wherever its terms lie (XLA inserts the all-reduces).
"""

from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import Any

import jax
from jax.sharding import AxisType, NamedSharding, PartitionSpec
import numpy as np

from dnal_jax import errors

AXIS = 'data'
BATCH_SHARDED, REPLICATED = PartitionSpec(AXIS), PartitionSpec()


def make_mesh(devices: Any = None) -> jax.sharding.Mesh:
  """The mesh of these devices; None: of all that there are."""
  n = len(jax.devices() if devices is None else devices)
  return jax.make_mesh((n,), (AXIS,), (AxisType.Auto,), devices=devices)


def single_device() -> AbstractContextManager:
  """A context in which this host computes on its own, on its first device."""
  return jax.set_mesh(make_mesh(jax.local_devices()[:1]))


def device_count() -> int:
  """Devices of the current mesh; 1 without one."""
  return max(1, jax.sharding.get_abstract_mesh().size)


def check_divisible(key: str, batch: int, parts: int = 1) -> None:
  """Raises UserError unless the devices can share each part of such batches
  evenly."""
  unit = device_count() * parts
  if batch % unit:
    told = f' in {parts} parts' if parts > 1 else ''
    raise errors.UserError(
      f'{key} is {batch}, which {device_count()} devices cannot share'
      f' evenly{told}; make it a multiple of {unit}'
    )


def batch_sharded(tree: Any) -> Any:
  """Inside of `jit`: arrays [B, ...] of which each device has its rows.

  A batch that the devices cannot share evenly is on all of them.
  """
  return _constrain(tree, BATCH_SHARDED)


def replicated(tree: Any) -> Any:
  """Inside of `jit`: arrays that every device has as a whole."""
  return _constrain(tree, REPLICATED)


def put_batch_sharded(tree: Any) -> Any:
  """Arrays of a batch on the devices, from this host's rows (numpy)."""
  return _put(tree, BATCH_SHARDED)


def put_replicated(tree: Any) -> Any:
  """Arrays on every device, from the same values on every host (numpy)."""
  return _put(tree, REPLICATED)


def any_process(value: bool) -> jax.typing.ArrayLike:
  """Whether it is true on any host; every host must ask as often."""
  if jax.process_count() == 1:
    return value
  return _any(put_batch_sharded(np.full(jax.local_device_count(), value)))


def jit_replicated(function: Callable[..., Any]) -> Callable[..., Any]:
  """`jax.jit`, with results that every device has as a whole."""
  return jax.jit(lambda *args: replicated(function(*args)))


def replicated_shapes(tree: Any) -> Any:
  """Shapes and dtypes, on every device as a whole, as restoring wants them."""
  return _like(tree, REPLICATED)


def batch_sharded_shapes(tree: Any) -> Any:
  """Shapes and dtypes of arrays of a batch, as `put_rows` places them."""
  return _like(tree, BATCH_SHARDED)


def _constrain(tree, spec):
  devices = device_count()
  if devices == 1:
    return tree

  def one(a):
    uneven = spec == BATCH_SHARDED and a.shape[0] % devices
    return jax.lax.with_sharding_constraint(a, REPLICATED if uneven else spec)

  return jax.tree.map(one, tree)


@jit_replicated
def _any(rows):
  return rows.any()


def _like(tree, spec):
  mesh = jax.sharding.get_mesh()
  where = None if mesh.empty else NamedSharding(mesh, spec)
  return jax.tree.map(
    lambda a: jax.ShapeDtypeStruct(a.shape, a.dtype, sharding=where), tree
  )


def _put(tree, spec):
  mesh = jax.sharding.get_mesh()
  if mesh.empty:
    return jax.device_put(tree)
  where = NamedSharding(mesh, spec)
  return jax.tree.map(
    lambda a: jax.make_array_from_process_local_data(where, np.asarray(a)), tree
  )
