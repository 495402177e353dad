"""What a run calls as it goes on: progress bar, status file, metrics, profiler.

`train.py` has a list of hooks (`_hooks`) and calls each at the same places, in
every process; those that write files are in the list of the primary process
only. A hook only observes; the one thing that it may change is how many steps
the next chunk has.
"""

from collections.abc import Callable, Iterable, Mapping
from typing import Any

from dnal_jax.training.stages import Stage


class Hook:
  """Does nothing at any of the places; subclasses override what they need."""

  def begin_stage(self, index: int, stage: Stage, steps_done: int) -> None:
    """Stage `index` of the run begins, or continues after some of its steps."""

  def before_chunk(self, steps: int) -> int:
    """The next `steps` steps are about to run; returns how many of them to run
    first, at least 1 and the same number in all processes."""
    return steps

  def on_steps(self, steps_done: int, metrics: Mapping[str, Any]) -> None:
    """`steps_done` steps of the stage are done; metrics of the last one."""

  def after_chunk(self, program: Callable[[], str]) -> None:
    """The steps that `before_chunk` announced are done. `program` returns the
    text of the compiled program of the steps."""

  def end_epoch(self, row: Mapping[str, Any], gates: Mapping[str, Any]) -> None:
    """An epoch is over: its row of metrics (`metrics.epoch_row`), and gate
    values by path where the stage searches, else {}."""

  def end_stage(self) -> None:
    """All epochs of the stage are done, or the run leaves it early."""


class HookList(Hook):
  """Calls every hook of a list, in order."""

  def __init__(self, hooks: Iterable[Hook]):
    self._hooks = list(hooks)

  def begin_stage(self, index: int, stage: Stage, steps_done: int) -> None:
    for hook in self._hooks:
      hook.begin_stage(index, stage, steps_done)

  def before_chunk(self, steps: int) -> int:
    for hook in self._hooks:
      steps = hook.before_chunk(steps)
    return steps

  def on_steps(self, steps_done: int, metrics: Mapping[str, Any]) -> None:
    for hook in self._hooks:
      hook.on_steps(steps_done, metrics)

  def after_chunk(self, program: Callable[[], str]) -> None:
    for hook in self._hooks:
      hook.after_chunk(program)

  def end_epoch(self, row: Mapping[str, Any], gates: Mapping[str, Any]) -> None:
    for hook in self._hooks:
      hook.end_epoch(row, gates)

  def end_stage(self) -> None:
    for hook in self._hooks:
      hook.end_stage()
