"""Data parallelism: each device has its share of every batch.

There is one mesh of one axis over all devices of all hosts. It is JAX's current
mesh (`jax.set_mesh`), so layers need not be passed one. Without a mesh, or on a
single device, everything here is the identity. The train state is replicated.
Sums over a batch, among them gradients and the statistics of BatchNorm, are
over the global batch: under `jit` XLA inserts the all-reduces.

Axes: B batch (global, unless a docstring says otherwise).
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


def check_platforms() -> None:
  """To be called before anything else uses a device: JAX itself raises in the
  first attempt only.

  Raises:
    UserError: JAX cannot use a platform that JAX_PLATFORMS names, or has none.
  """
  try:
    jax.devices()
  except (RuntimeError, AssertionError) as error:  # that one without a message
    given = jax.config.values['jax_platforms'] or ''
    reason = str(error).partition('\n')[0].partition(' (set JAX_')[0]
    raise errors.UserError(
      f"JAX_PLATFORMS is '{given}', which JAX cannot use here"
      f' ({reason or "no such device"}); unset it to let JAX choose, or set it'
      ' to cpu'
    ) from error


def make_mesh(devices: Any = None) -> jax.sharding.Mesh:
  """The mesh of these devices; of all devices if None."""
  n = len(jax.devices() if devices is None else devices)
  return jax.make_mesh((n,), (AXIS,), (AxisType.Auto,), devices=devices)


def single_device() -> AbstractContextManager:
  """A context in which this host computes alone, on its first device."""
  return jax.set_mesh(make_mesh(jax.local_devices()[:1]))


def device_count() -> int:
  """The number of devices in the current mesh; 1 without one."""
  return max(1, jax.sharding.get_abstract_mesh().size)


def check_divisible(key: str, batch: int, parts: int = 1) -> None:
  """Raises UserError unless each of `parts` parts of a batch divides evenly
  among the devices."""
  unit = device_count() * parts
  if batch % unit:
    in_parts = f' in {parts} parts' if parts > 1 else ''
    raise errors.UserError(
      f'{key} is {batch}, which {device_count()} devices cannot share'
      f' evenly{in_parts}; make it a multiple of {unit}'
    )


def batch_sharded(tree: Any) -> Any:
  """Inside `jit`: arrays [B, ...], sharded over the devices by rows.

  A batch that does not divide evenly is replicated.
  """
  return _constrain(tree, BATCH_SHARDED)


def replicated(tree: Any) -> Any:
  """Inside `jit`: the same arrays, replicated on every device."""
  return _constrain(tree, REPLICATED)


def put_batch_sharded(tree: Any) -> Any:
  """Global arrays [B, ...] from this host's rows (numpy)."""
  return _put(tree, BATCH_SHARDED)


def put_replicated(tree: Any) -> Any:
  """Replicated arrays from values (numpy) that are equal on every host."""
  return _put(tree, REPLICATED)


def any_process(value: bool) -> jax.typing.ArrayLike:
  """Whether `value` is true on any host. All hosts must call it equally
  often."""
  if jax.process_count() == 1:
    return value
  return _any(put_batch_sharded(np.full(jax.local_device_count(), value)))


def jit_replicated(function: Callable[..., Any]) -> Callable[..., Any]:
  """`jax.jit` with replicated results."""
  return jax.jit(lambda *args: replicated(function(*args)))


def replicated_shapes(tree: Any) -> Any:
  """Shapes and dtypes of a tree, with a replicated sharding."""
  return _like(tree, REPLICATED)


def batch_sharded_shapes(tree: Any) -> Any:
  """Shapes and dtypes of a tree [B, ...], sharded as by `put_batch_sharded`."""
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
