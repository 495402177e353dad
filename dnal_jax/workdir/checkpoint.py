"""Checkpoints of a run: arrays, written by orbax, and the run state as JSON.

The run state is read first: it says which channels the arrays have, and so
which shapes to restore them into.
"""

from collections.abc import Callable, Sequence
import dataclasses
import hashlib
import json
import pathlib
import textwrap
import time
from typing import Any
import zlib

import jax
import numpy as np
import orbax.checkpoint as ocp

from dnal_jax import errors
from dnal_jax.parallel import processes
from dnal_jax.workdir import disk_errors
from dnal_jax.workdir.run_state import RunState

_MAX_REASON = 200  # characters; tensorstore's messages contain its whole spec

# What reading may raise although the files are not damaged: another process was
# lost, or the memory is full.
_NO_DAMAGE = (jax.errors.JaxRuntimeError, MemoryError)

# Names of leaves on disk are those of the first version, whose train state had
# its gate logits in the field `logits`.
_FIELDS_ON_DISK = {'.gate_logits': '.logits'}


class _RetentionPolicy(ocp.checkpoint_managers.LatestN):
  """Keeps the two latest checkpoints and the best one."""

  def __init__(self):
    super().__init__(n=2)
    self.best: int | None = None

  def should_preserve(
    self,
    checkpoints: Sequence[ocp.checkpoint_managers.PolicyCheckpointInfo],
    *,
    context: ocp.checkpoint_managers.PreservationContext,
  ) -> Sequence[bool]:
    latest = super().should_preserve(checkpoints, context=context)
    return [
      is_latest or info.step == self.best
      for is_latest, info in zip(latest, checkpoints, strict=True)
    ]


class Damaged(Exception):
  """The files of a checkpoint are not what was saved; says why."""


class Checkpoints:
  """Checkpoints in a folder, by their `RunState.number`: the latest two, and
  the best by validation.

  Each stores, beside its arrays, their names, shapes, dtypes and the CRC-32 of
  their bytes, and a digest of all this and of the run state.

  A context manager: leaving it waits for the save under way, and raises what
  goes wrong with it unless the body has raised a UserError.
  """

  def __init__(self, directory: pathlib.Path):
    self._directory = directory
    self._needed = 0  # bytes of a checkpoint
    self.latest: RunState | None = None  # that was saved or restored here
    self._policy = _RetentionPolicy()
    self._manager = ocp.CheckpointManager(
      directory.absolute(),
      item_handlers={
        'state': ocp.StandardCheckpointHandler(),
        'position': ocp.JsonCheckpointHandler(),
      },
      options=ocp.CheckpointManagerOptions(
        preservation_policy=self._policy,
        async_options=ocp.AsyncOptions(
          timeout_secs=disk_errors.SAVE_MINUTES * 60,
          # Otherwise, where the directory cannot be created, orbax's threads
          # wait for it for minutes, and the process for them.
          create_directories_asynchronously=False,
        ),
      ),
    )

  def __enter__(self) -> 'Checkpoints':
    return self

  def __exit__(
    self, kind: Any, error: BaseException | None, trace: Any
  ) -> None:
    try:
      self.close()
    except (errors.UserError, errors.Stopped):
      if not isinstance(error, errors.UserError):
        raise

  def save(self, state: Any, run_state: RunState) -> None:
    """Starts to save; a checkpoint that is only partly written is never read.

    Raises:
      UserError: the disk is full or not writable, for this save or the previous
        one.
      Stopped: the previous save has not ended in time.
    """
    leaves = _leaves(state)
    bytes_of_leaves = sum(leaf.nbytes for leaf in leaves.values())
    self._needed = int(1.1 * bytes_of_leaves) + 2**20  # with orbax's metadata
    disk_errors.check_free(self._directory, self._needed)
    stored = {
      'position': run_state.to_json(),
      'leaves': {key: _fingerprint(leaf) for key, leaf in leaves.items()},
    }
    best = run_state.result.best
    self._policy.best = best['number'] if best else None
    with disk_errors.explained(self._directory, self._needed):
      self._manager.save(
        run_state.number,
        args=ocp.args.Composite(
          state=ocp.args.StandardSave(leaves),
          position=ocp.args.JsonSave({**stored, 'digest': _digest(stored)}),
        ),
      )
    self.latest = run_state

  def describe_latest(self) -> str:
    """Where in the run the latest checkpoint is, for messages."""
    if self.latest is None:
      return 'there is no checkpoint yet'
    return f'the last checkpoint is of {self.latest.describe()}'

  def newest(
    self, like: Callable[[RunState], Any]
  ) -> tuple[RunState, Any] | None:
    """(run state, train state) of the newest undamaged checkpoint; None if the
    folder has no checkpoint.

    `like` maps a run state to the shapes, dtypes and shardings of its train
    state. It must be a pure function; what it raises is raised. Damaged
    checkpoints are reported and moved into the folder `damaged`, once an
    undamaged one is found.

    Raises:
      UserError: all checkpoints are damaged, or one has other arrays than
        `like` says; or as `save`.
      Stopped: as `save`.
    """
    with disk_errors.explained(self._directory, self._needed):
      self._manager.wait_until_finished()
    found = sorted(self._manager.all_steps(), reverse=True)
    reasons = []
    for number in found:
      saved, reason = None, ''
      try:
        saved = self._read(number, like)
      except Damaged as error:
        reason = str(error)
      # All processes restore the same checkpoint: one that all can read.
      reason = next(filter(None, processes.allgather_json(reason)), '')
      if saved is not None and not reason:
        self._move_aside(found[: len(reasons)])
        run_state, state = saved
        best = run_state.result.best
        if best and best['number'] not in found:
          # It was deleted for a better one, which is damaged and will be saved
          # again.
          result = dataclasses.replace(run_state.result, best=None)
          run_state = dataclasses.replace(run_state, result=result)
        self.latest = run_state
        return run_state, state
      reasons.append(f"'{self._directory / str(number)}' ({reason})")
      print(f'damaged, trying the checkpoint before: {reasons[-1]}')
    if not reasons:
      return None
    raise errors.UserError(
      f'no checkpoint can be read: {"; ".join(reasons)}. Bring back a copy, or'
      ' start again in another --workdir'
    )

  def _read(
    self, number: int, like: Callable[[RunState], Any]
  ) -> tuple[RunState, Any]:
    """Raises Damaged if the files are not what was saved, and nothing else for
    that reason."""
    stored = self._restore(number, 'position', ocp.args.JsonRestore())
    _check_digest(stored)
    run_state = RunState.from_json(stored['position'])
    shapes = like(run_state)
    leaves = _leaves(shapes)
    self._check_shapes(number, stored['leaves'], leaves)
    args = ocp.args.StandardRestore(leaves)
    restored = self._restore(number, 'state', args)
    for key, fingerprint in stored['leaves'].items():
      if _fingerprint(restored[key]) != fingerprint:
        raise Damaged(f'state{key} is not as it was saved')
    values = [restored[key] for key in leaves]
    return run_state, jax.tree.unflatten(jax.tree.structure(shapes), values)

  def _restore(self, number: int, item: str, args: Any) -> Any:
    """An item of a checkpoint. Only orbax runs here, and a flipped bit makes it
    raise almost anything; mistakes in this package are raised elsewhere."""
    try:
      return self._manager.restore(
        number, args=ocp.args.Composite(**{item: args})
      )[item]
    except _NO_DAMAGE:
      raise
    except Exception as error:
      reason = f'{type(error).__name__}: {error}'.splitlines()[0]
      reason = textwrap.shorten(reason, _MAX_REASON, placeholder=' ...')
      raise Damaged(reason) from error

  def _check_shapes(
    self, number: int, stored: dict[str, Any], leaves: dict[str, Any]
  ) -> None:
    """Raises UserError for the first leaf whose shape or dtype differs."""
    have = {key: fingerprint[:2] for key, fingerprint in stored.items()}
    want = {key: [list(a.shape), str(a.dtype)] for key, a in leaves.items()}
    for key in sorted(have.keys() | want.keys()):
      if have.get(key) != want.get(key):
        raise errors.UserError(
          f"'{self._directory / str(number)}': {key} is stored as"
          f' {have.get(key)}, and the network needs {want.get(key)}; it was'
          ' written by another version: use that one, or start again in another'
          ' --workdir'
        )

  def _move_aside(self, numbers: Sequence[int]) -> None:
    """Frees the numbers of damaged checkpoints, which will be saved again."""
    if not numbers:
      return
    if processes.is_primary():
      aside = self._directory.with_name('damaged')
      aside.mkdir(exist_ok=True)
      for number in numbers:
        place = aside / f'{number}-{time.time_ns()}'
        (self._directory / str(number)).rename(place)
    processes.allgather_json(None)  # the others wait until they are moved
    self._manager.reload()

  def close(self) -> None:
    """Waits for the save under way; raises as `save` does."""
    with disk_errors.explained(self._directory, self._needed):
      self._manager.wait_until_finished()
      self._manager.close()


def _leaves(state: Any) -> dict[str, Any]:
  """{name on disk: leaf}. Orbax is given a flat dict because it would restore
  named tuples as dicts or lists."""
  leaves = {}
  for path, leaf in jax.tree_util.tree_leaves_with_path(state):
    field, rest = (jax.tree_util.keystr(p) for p in (path[:1], path[1:]))
    leaves[_FIELDS_ON_DISK.get(field, field) + rest] = leaf
  return leaves


def _fingerprint(leaf: jax.Array) -> list[Any]:
  """[shape, dtype, CRC-32 of the bytes], as JSON reads them back."""
  values = np.asarray(jax.device_get(leaf))
  return [list(values.shape), str(values.dtype), zlib.crc32(values.tobytes())]


def _digest(stored: dict[str, Any]) -> str:
  return hashlib.sha256(json.dumps(stored, sort_keys=True).encode()).hexdigest()


def _check_digest(stored: Any) -> None:
  """Raises Damaged unless the JSON of a checkpoint is as it was saved."""
  if isinstance(stored, dict):
    rest = {key: stored[key] for key in stored if key != 'digest'}
    if stored.get('digest') == _digest(rest):
      return
  raise Damaged('position is not as it was saved')
