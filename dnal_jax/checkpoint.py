"""Checkpoints of a run: arrays by orbax, and beside them where the run stands.

The position (JSON) is read first; it tells which channels the arrays have, so
that they are restored into the shapes of that network and no others.
"""

from collections.abc import Callable, Iterator
import contextlib
import dataclasses
import errno
import hashlib
import json
import os
import pathlib
import shutil
import time
from typing import Any
import zlib

import jax
import numpy as np
import orbax.checkpoint as ocp

from dnal_jax import errors, hosts


@dataclasses.dataclass
class Position:
  """Where a run stands, and the figures so far. JSON on disk."""

  stage: int = 0
  epoch: int = 0  # of that stage, done
  step: int = 0  # of the epoch, done
  sums: dict[str, float] = dataclasses.field(default_factory=dict)  # over them
  keep: dict[str, tuple[int, ...]] = dataclasses.field(default_factory=dict)
  stages: list[dict[str, Any]] = dataclasses.field(default_factory=list)
  top1: dict[str, float | None] = dataclasses.field(
    default_factory=lambda: dict.fromkeys(
      ('warmup', 'gated', 'pruned', 'compact', 'final')
    )
  )
  compact_max_abs_diff: float | None = None
  images: int = 0  # to train on
  rollbacks: int = 0  # times the run went back since numbers were not finite
  lr_factor: float = 1.0  # of this stage's learning rates, because of that
  # Of each process: by split, the records that it has found to be broken. One
  # may fail in some crops only, so another's knowledge would change a batch.
  broken: list[dict[str, list[int]]] = dataclasses.field(default_factory=list)

  @property
  def epochs_done(self) -> int:
    """In all stages."""
    before = self.stages[: self.stage]
    return sum(stage['epochs'] for stage in before) + self.epoch

  def next_stage(self) -> None:
    """At the beginning of the next one; `begin_stage` follows."""
    self.stage, self.epoch, self.lr_factor = self.stage + 1, 0, 1.0

  def begin_stage(self, name: str, epochs: int, steps: int) -> None:
    """Adds the entry of a stage to the result; an epoch fills it in."""
    self.stages.append(
      {
        'name': name,
        'epochs': epochs,
        'steps': steps,
        'seconds': 0.0,
        'train_loss': None,
      }
    )

  def add(self, steps: list[dict[str, Any]], seconds: float) -> None:
    """Counts in the metrics of steps that were done, one after the other, so
    that the sums are the same wherever a run was interrupted."""
    sums = self.sums or {'loss': 0.0, 'correct': 0.0, 'seconds': 0.0}
    for metrics in steps:
      sums['loss'] += float(metrics['loss'])
      sums['correct'] += float(metrics['correct'])
    sums['seconds'] += seconds
    sums['gate_sum'] = float(steps[-1]['gate_sum'])
    self.sums = sums
    self.step += len(steps)

  def slower_than(self, before: 'Position') -> float:
    """Halves the learning rates with which a run got to `before`, from where
    it went back to here; returns the factor."""
    self.rollbacks, self.lr_factor = before.rollbacks + 1, before.lr_factor / 2
    return self.lr_factor

  def end_epoch(self) -> dict[str, float]:
    """The sums over the epoch that is done; the next begins."""
    sums, self.sums = self.sums, {}
    self.epoch, self.step = self.epoch + 1, 0
    return sums

  def check(self, title: str, images: int) -> None:
    """Raises UserError if the data has changed since the run began."""
    if images != self.images:
      raise errors.UserError(
        f"'{title}' had {self.images} images to train on when this run began,"
        f' now it has {images}; bring it back, or choose another --workdir'
      )

  def broken_for(self, process: int, processes: int) -> dict[str, list[int]]:
    """What that process knew; of another number of them, what any knew."""
    if len(self.broken) == processes:
      return self.broken[process]
    return {
      split: sorted({n for found in self.broken for n in found[split]})
      for split in (self.broken[0] if self.broken else ())
    }

  def record(
    self, loss: float, seconds: float, point: str | None, top1: float
  ) -> None:
    """What an epoch leaves in the result; `point` is a key of `top1`."""
    self.stages[-1]['train_loss'] = loss
    self.stages[-1]['seconds'] += seconds
    if point is not None:
      self.top1[point] = top1

  def told(self) -> str:
    """Where in the stage, for people."""
    of = f'{self.epoch} of {self.stages[-1]["epochs"]} epochs'
    return f'{of} and {self.step} steps done' if self.step else f'{of} done'

  @classmethod
  def from_json(cls, value: dict[str, Any]) -> 'Position':
    keep = {gate: tuple(ids) for gate, ids in value['keep'].items()}
    return cls(**{**value, 'keep': keep})


class Damaged(Exception):
  """A checkpoint is not what was saved."""


class Checkpoints:
  """The newest two checkpoints in a folder, numbered in order of the run.

  Beside the arrays stands what they were: paths, shapes, dtypes and CRC-32 of
  the bytes, and a digest of that and of the position.
  """

  def __init__(self, directory: pathlib.Path):
    self._directory = directory
    self._needed = 0  # bytes of a checkpoint
    self._manager = ocp.CheckpointManager(
      directory.absolute(),
      item_handlers={
        'state': ocp.StandardCheckpointHandler(),
        'position': ocp.JsonCheckpointHandler(),
      },
      options=ocp.CheckpointManagerOptions(max_to_keep=2),
    )

  def save(self, number: int, state: Any, position: Position) -> None:
    """Starts saving; a half-written checkpoint is never taken for one.

    Raises:
      UserError: the disk is too full, for this one or for the one before.
    """
    tree = _tree(state)
    needed = sum(leaf.nbytes for leaf in tree.values())
    self._needed = int(1.1 * needed) + 2**20  # and what orbax adds
    free = shutil.disk_usage(self._directory).free
    if free < self._needed:
      raise self._full(free)
    told = {
      'position': dataclasses.asdict(position),
      'leaves': {key: _told(leaf) for key, leaf in tree.items()},
    }
    with self._disk():
      self._manager.save(
        number,
        args=ocp.args.Composite(
          state=ocp.args.StandardSave(tree),
          position=ocp.args.JsonSave({**told, 'digest': _digest(told)}),
        ),
      )

  def newest(
    self, like: Callable[[Position], Any]
  ) -> tuple[Position, Any] | None:
    """Position and state of the newest checkpoint that is whole; None if there
    is no checkpoint. `like` gives the structure and shapes of the state.

    Damaged ones are named and put aside, into `damaged`.

    Raises:
      UserError: there are checkpoints, and all are damaged.
    """
    self._manager.wait_until_finished()
    found = sorted(self._manager.all_steps(), reverse=True)
    reasons = []
    for number in found:
      whole, reason = None, ''
      try:
        whole = self._read(number, like)
      except Exception as error:  # whatever a damaged file makes readers raise
        reason = f'{type(error).__name__}: {error}'.splitlines()[0]
      # All processes take the same.
      reason = next(filter(None, hosts.everyone(reason)), '')
      if whole is not None and not reason:
        for damaged in found[: len(reasons)]:
          self._put_aside(damaged)
        if reasons:
          self._manager.reload()
        return whole
      reasons.append(f"'{self._directory / str(number)}' ({reason})")
      print(f'damaged, trying the checkpoint before: {reasons[-1]}')
    if not reasons:
      return None
    raise errors.UserError(
      f'no checkpoint can be read: {"; ".join(reasons)}. Bring back a copy, or'
      ' start again in another --workdir'
    )

  def _read(
    self, number: int, like: Callable[[Position], Any]
  ) -> tuple[Position, Any]:
    """Raises Damaged, or what the readers raise, unless all is as saved."""
    told = self._manager.restore(
      number, args=ocp.args.Composite(position=ocp.args.JsonRestore())
    )['position']
    digest = told.pop('digest')
    if digest != _digest(told):
      raise Damaged('position is not as it was saved')
    position = Position.from_json(told['position'])
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
    if not hosts.first():
      return
    aside = self._directory.with_name('damaged')
    aside.mkdir(exist_ok=True)
    place = aside / f'{number}-{time.time_ns()}'
    (self._directory / str(number)).rename(place)

  def close(self) -> None:
    """Waits for what is being saved; UserError as in `save`."""
    with self._disk():
      self._manager.wait_until_finished()
      self._manager.close()

  @contextlib.contextmanager
  def _disk(self) -> Iterator[None]:
    """Tells of a disk that fills up in the middle of a save."""
    try:
      yield
    except Exception as error:  # of which orbax and tensorstore have several
      if os.strerror(errno.ENOSPC) not in str(error):
        raise
      raise self._full(shutil.disk_usage(self._directory).free) from error

  def _full(self, free: int) -> errors.UserError:
    return errors.UserError(
      f"'{self._directory}' is on a disk with {free:,} bytes free, and a"
      f' checkpoint needs {self._needed:,}; make space, and the same command'
      ' goes on from the last checkpoint'
    )


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
