"""Checkpoints of a run: arrays by orbax, and beside them where the run stands.

The position (JSON) is read first; it tells which channels the arrays have, so
that they are restored into the shapes of that network and no others.
"""

from collections.abc import Callable, Iterator, Sequence
import contextlib
import dataclasses
import errno
import hashlib
import json
import os
import pathlib
import shutil
import textwrap
import time
from typing import Any
import zlib

import jax
import numpy as np
import orbax.checkpoint as ocp

from dnal_jax import errors
from dnal_jax.parallel import processes
from dnal_jax.workdir.run_state import RunState

_REASON = 200  # characters of a reader's, which may tell all it was given
_MINUTES = 20  # in which a checkpoint must be written


class _Stay(ocp.checkpoint_managers.LatestN):
  """Which checkpoints stay when another is saved."""

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
      new or one.step == self.best
      for new, one in zip(latest, checkpoints, strict=True)
    ]


class Damaged(Exception):
  """A checkpoint is not what was saved."""


class Checkpoints:
  """Checkpoints in a folder, by their `RunState.number`: the newest two, and
  the best by validation.

  Beside the arrays stands what they were: paths, shapes, dtypes and CRC-32 of
  the bytes, and a digest of that and of the position.

  To be entered: what goes wrong with the save that is under way at the end is
  told, unless there is something of its own to tell.
  """

  def __init__(self, directory: pathlib.Path):
    self._directory = directory
    self._needed = 0  # bytes of a checkpoint
    self._stay = _Stay()
    self._manager = ocp.CheckpointManager(
      directory.absolute(),
      item_handlers={
        'state': ocp.StandardCheckpointHandler(),
        'position': ocp.JsonCheckpointHandler(),
      },
      options=ocp.CheckpointManagerOptions(
        preservation_policy=self._stay,
        async_options=ocp.AsyncOptions(
          timeout_secs=_MINUTES * 60,
          # Else threads wait for minutes, and the process for them, for a
          # directory that could not be made.
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

  def save(self, state: Any, position: RunState) -> None:
    """Starts saving; a half-written checkpoint is never taken for one.

    Raises:
      UserError: the disk is too full or may not be written, for this one or
        for the one before.
      Stopped: the one before has not been written in time.
    """
    tree = _tree(state)
    needed = sum(leaf.nbytes for leaf in tree.values())
    self._needed = int(1.1 * needed) + 2**20  # and what orbax adds
    free = shutil.disk_usage(self._directory).free
    if free < self._needed:
      raise self._full(f'{free:,} bytes free')
    told = {
      'position': position.to_json(),
      'leaves': {key: _told(leaf) for key, leaf in tree.items()},
    }
    best = position.result.best
    self._stay.best = best['number'] if best else None
    with self._disk():
      self._manager.save(
        position.number,
        args=ocp.args.Composite(
          state=ocp.args.StandardSave(tree),
          position=ocp.args.JsonSave({**told, 'digest': _digest(told)}),
        ),
      )

  def newest(
    self, like: Callable[[RunState], Any]
  ) -> tuple[RunState, Any] | None:
    """Position and state of the newest checkpoint that is whole; None if there
    is no checkpoint. `like` gives the structure and shapes of the state.

    Damaged ones are named and put aside, into `damaged`.

    Raises:
      UserError: there are checkpoints, and all are damaged; or as `save`.
      Stopped: as `save`.
    """
    with self._disk():
      self._manager.wait_until_finished()
    found = sorted(self._manager.all_steps(), reverse=True)
    reasons = []
    for number in found:
      whole, reason = None, ''
      try:
        whole = self._read(number, like)
      except Exception as error:  # whatever a damaged file makes readers raise
        reason = f'{type(error).__name__}: {error}'.splitlines()[0]
        reason = textwrap.shorten(reason, _REASON, placeholder=' ...')
      # All processes take the same.
      reason = next(filter(None, processes.allgather_json(reason)), '')
      if whole is not None and not reason:
        for damaged in found[: len(reasons)]:
          self._put_aside(damaged)
        if reasons:
          processes.allgather_json(None)  # once the first has moved them
          self._manager.reload()
        position, state = whole
        best = position.result.best
        if best and best['number'] not in found:
          # It made room for a better one, which is damaged and will come again.
          result = dataclasses.replace(position.result, best=None)
          position = dataclasses.replace(position, result=result)
        return position, state
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
    """Raises Damaged, or what the readers raise, unless all is as saved."""
    told = self._manager.restore(
      number, args=ocp.args.Composite(position=ocp.args.JsonRestore())
    )['position']
    digest = told.pop('digest')
    if digest != _digest(told):
      raise Damaged('position is not as it was saved')
    position = RunState.from_json(told['position'])
    wanted = like(position)
    tree = _tree(wanted)
    differing = _differing(told['leaves'], tree)
    if differing:
      raise Damaged(f'{differing}; it was written by another version')
    restored = self._manager.restore(
      number, args=ocp.args.Composite(state=ocp.args.StandardRestore(tree))
    )['state']
    for key, leaf in restored.items():
      if _told(leaf) != told['leaves'][key]:
        raise Damaged(f'state{key} is not as it was saved')
    leaves = [restored[key] for key in tree]
    return position, jax.tree.unflatten(jax.tree.structure(wanted), leaves)

  def _put_aside(self, number: int) -> None:
    """Out of the way of the checkpoint that will have this number."""
    if not processes.is_primary():
      return
    aside = self._directory.with_name('damaged')
    aside.mkdir(exist_ok=True)
    place = aside / f'{number}-{time.time_ns()}'
    (self._directory / str(number)).rename(place)

  def close(self) -> None:
    """Waits for what is being saved; raises as `save` does."""
    with self._disk():
      self._manager.wait_until_finished()
      self._manager.close()

  @contextlib.contextmanager
  def _disk(self) -> Iterator[None]:
    """Tells of a disk that fills up, or may not be written any more, in the
    middle of a save."""
    try:
      yield
    except TimeoutError as error:
      cause: Any = error.__cause__
      if isinstance(cause, jax.errors.JaxRuntimeError):
        raise cause from None  # another process was lost
      # By the wall clock, which may have been set anew. Nothing is wrong with
      # the run, so it is for whoever starts it to start it again.
      raise errors.Stopped(
        f"a checkpoint was not written to '{self._directory}' within {_MINUTES}"
        ' minutes: the disk hangs, or the clock has jumped; the same command'
        ' goes on from the last checkpoint'
      ) from error
    except Exception as error:  # of which orbax and tensorstore have several
      if _says(error, errno.ENOSPC):
        free = shutil.disk_usage(self._directory).free
        raise self._full(f'{free:,} bytes free') from error
      if _says(error, errno.EDQUOT):
        raise self._full('no quota left') from error
      reason = _says(error, errno.EROFS, errno.EACCES, errno.EPERM)
      if reason:
        raise errors.UserError(
          f"'{self._directory}' cannot be written any more ({reason}); allow"
          ' it, and the same command goes on from the last checkpoint'
        ) from error
      raise

  def _full(self, left: str) -> errors.UserError:
    return errors.UserError(
      f"'{self._directory}' is on a disk with {left}, and a"
      f' checkpoint needs {self._needed:,}; make space, and the same command'
      ' goes on from the last checkpoint'
    )


def _says(error: Exception, *numbers: int) -> str | None:
  """Which of these of the system's errors the message of an error tells."""
  reasons = map(os.strerror, numbers)
  return next((reason for reason in reasons if reason in str(error)), None)


def _tree(state: Any) -> dict[str, Any]:
  """A flat dict, because orbax gives named tuples back as dicts or lists."""
  leaves = jax.tree_util.tree_leaves_with_path(state)
  return {jax.tree_util.keystr(path): leaf for path, leaf in leaves}


def _told(leaf: jax.Array) -> list[Any]:
  """[shape, dtype, CRC-32] as JSON has them."""
  values = np.asarray(jax.device_get(leaf))
  return [list(values.shape), str(values.dtype), zlib.crc32(values.tobytes())]


def _digest(told: dict[str, Any]) -> str:
  return hashlib.sha256(json.dumps(told, sort_keys=True).encode()).hexdigest()


def _differing(have: dict[str, Any], want: dict[str, Any]) -> str:
  """The first leaf that differs in shape or dtype, in words; '' if none."""
  shapes = {k: [list(a.shape), str(a.dtype)] for k, a in want.items()}
  stored = {k: told[:2] for k, told in have.items()}
  for key in sorted(stored.keys() | shapes.keys()):
    if stored.get(key) != shapes.get(key):
      return f'{key} is stored as {stored.get(key)}, wanted {shapes.get(key)}'
  return ''
