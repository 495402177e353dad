"""Checkpoints of a run: arrays by orbax, and beside them where the run stands.

The position (JSON) is read first; it tells which channels the arrays have, so
that they are restored into the shapes of that network and no others.
"""

import dataclasses
import pathlib
from typing import Any

import jax
import orbax.checkpoint as ocp

from dnal_jax import errors


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
  # Of each process: by split, the records that it has found to be broken. One
  # may fail in some crops only, so another's knowledge would change a batch.
  broken: list[dict[str, list[int]]] = dataclasses.field(default_factory=list)

  @property
  def epochs_done(self) -> int:
    """In all stages."""
    before = self.stages[: self.stage]
    return sum(stage['epochs'] for stage in before) + self.epoch

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


class Checkpoints:
  """The newest two checkpoints in a folder, numbered in order of the run."""

  def __init__(self, directory: pathlib.Path):
    self._directory = directory
    self._manager = ocp.CheckpointManager(
      directory.absolute(),
      item_handlers={
        'state': ocp.StandardCheckpointHandler(),
        'position': ocp.JsonCheckpointHandler(),
      },
      options=ocp.CheckpointManagerOptions(max_to_keep=2),
    )

  def save(self, number: int, state: Any, position: Position) -> None:
    """Starts saving; a half-written checkpoint is never taken for one."""
    self._manager.save(
      number,
      args=ocp.args.Composite(
        state=ocp.args.StandardSave(_tree(state)),
        position=ocp.args.JsonSave(dataclasses.asdict(position)),
      ),
    )

  def latest(self) -> tuple[int, Position] | None:
    """Number and position of the newest checkpoint, if there is one."""
    number = self._manager.latest_step()
    if number is None:
      return None
    restored = self._manager.restore(
      number, args=ocp.args.Composite(position=ocp.args.JsonRestore())
    )
    return number, Position.from_json(restored['position'])

  def restore(self, number: int, like: Any) -> Any:
    """The state of a checkpoint; `like` gives its structure and shapes.

    Raises:
      UserError: what is stored has other paths, shapes or dtypes.
    """
    want = _tree(like)
    stored = self._manager.item_metadata(number)['state']
    differing = _differing(_signature(stored), _signature(want))
    if differing:
      raise errors.UserError(
        f"checkpoint '{self._directory / str(number)}' does not fit the"
        f' network: {differing}; it was written by another version, or is'
        ' damaged'
      )
    restored = self._manager.restore(
      number, args=ocp.args.Composite(state=ocp.args.StandardRestore(want))
    )
    leaves = [restored['state'][key] for key in want]
    return jax.tree.unflatten(jax.tree.structure(like), leaves)

  def close(self) -> None:
    """Waits for what is being saved."""
    self._manager.wait_until_finished()
    self._manager.close()


def _tree(state: Any) -> dict[str, Any]:
  """A flat dict, because orbax gives named tuples back as dicts or lists."""
  leaves = jax.tree_util.tree_leaves_with_path(state)
  return {jax.tree_util.keystr(path): leaf for path, leaf in leaves}


def _signature(tree: Any) -> dict[str, tuple[tuple[int, ...], str]]:
  return {k: (tuple(a.shape), str(a.dtype)) for k, a in tree.items()}


def _differing(have: dict[str, Any], want: dict[str, Any]) -> str:
  """The first leaf that differs, in words; '' if none does."""
  for key in sorted(have.keys() | want.keys()):
    if have.get(key) != want.get(key):
      return f'{key} is stored as {have.get(key)}, wanted {want.get(key)}'
  return ''
