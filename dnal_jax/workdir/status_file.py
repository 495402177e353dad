"""status.json: how far a run is, for people and programs that watch it.

The primary process writes it when steps have ended, every few seconds and for
at most a hundredth of the time; it needs no thread and no device. It is for
people and watchdogs. No run reads it, and if it cannot be written, the run
warns once and continues.

  state              running, stopped, failed or finished; a process that was
                     killed leaves 'running' (`status.py` checks the lock, too)
  message            first line of the reason if stopped or failed, else null
  stage, stage_number, stages      name, from 1, how many
  epoch, epochs      of the stage; the one under way, from 1
  step, steps        of the stage, done and in all
  run_step, run_steps              of all stages
  images_per_second  since the last change, evaluation and saving included
  seconds_left       {stage, run}: steps left times the seconds a step has taken
                     in this stage since the first were compiled, evaluation and
                     saving included. An estimate: later stages are assumed to
                     be as fast, and a pruned network is faster
  checkpoint         {number, time} of the newest complete one
  loss               mean per image, of the last step
  validation_top1    of the last epoch, a share of 1
  pid, host, updated

Figures that are not known yet are null; times are ISO 8601, UTC.
"""

from collections.abc import Mapping
import contextlib
import datetime
import math
import pathlib
import sys
import time
from typing import Any

import tqdm

from dnal_jax import errors
from dnal_jax.config import RunConfig
from dnal_jax.training.hooks import Hook
from dnal_jax.training.stages import Stage
from dnal_jax.workdir import json_files, lock

NAME = 'status.json'
KEYS = {
  *('state', 'message', 'stage', 'stage_number', 'stages', 'epoch', 'epochs'),
  *('step', 'steps', 'run_step', 'run_steps', 'images_per_second'),
  *('seconds_left', 'checkpoint', 'loss', 'validation_top1', 'pid', 'host'),
  'updated',
}
_EVERY = 5.0  # seconds
_SHARE = 0.01  # of the time, at most


class StatusFile(Hook):
  """Writes status.json while it is entered, and at the end how the run ended.

  Raises:
    UserError: from every method, if another process has taken the lock over.
  """

  def __init__(
    self,
    config: RunConfig,
    workdir: pathlib.Path,
    held: lock.Lock,
    steps_per_epoch: int,
  ):
    self._workdir, self._lock = workdir, held
    self._batch_size = config.batch_size
    self._steps_per_epoch = steps_per_epoch
    self._stages = config.stages
    self._steps = [stage.epochs * steps_per_epoch for stage in config.stages]
    self._index: int | None = None  # of the stage
    self._steps_done = 0  # in the stage
    self._between_epochs = False
    self._first: tuple[float, int] | None = None  # (time, steps done), compiled
    self._last: tuple[float, int] | None = None  # when _speed was last computed
    self._speed: float | None = None  # images per second
    self._loss: float | None = None
    self._top1: float | None = None
    # Times: the file is written at steps from the first on, at epochs from the
    # second on.
    self._due_at_steps = self._due_at_epochs = 0.0
    self._failed = False

  def __enter__(self) -> 'StatusFile':
    self._write('running')
    return self

  def __exit__(self, kind: Any, error: BaseException | None, trace: Any):
    if kind is None:
      self._write('finished')
      return
    lines = str(error).strip().splitlines() or [kind.__name__]
    stopped = isinstance(error, errors.Stopped | KeyboardInterrupt)
    with contextlib.suppress(errors.UserError):  # the lock was taken over
      self._write('stopped' if stopped else 'failed', lines[0])

  def begin_stage(self, index: int, stage: Stage, steps_done: int) -> None:
    del stage
    self._index, self._steps_done = index, steps_done
    self._between_epochs = True
    self._first = self._last = self._speed = None
    self._write('running')

  def on_steps(self, steps_done: int, metrics: Mapping[str, Any]) -> None:
    self._steps_done, self._between_epochs = steps_done, False
    loss = float(metrics['loss']) / self._batch_size
    self._loss = loss if math.isfinite(loss) else None  # JSON has no NaN
    now = time.perf_counter()
    if self._first is None:  # the time before includes compiling
      self._first = self._last = (now, steps_done)
    if now >= self._due_at_steps:
      self._write('running')

  def end_epoch(self, row: Mapping[str, Any], gates: Mapping[str, Any]) -> None:
    del gates
    self._top1, self._between_epochs = row['validation_top1'], True
    if time.perf_counter() >= self._due_at_epochs:
      self._write('running')

  def check_lock(self) -> None:
    """Raises UserError if another process has taken the folder over."""
    self._lock.check()

  def _write(self, state: str, message: str | None = None) -> None:
    self.check_lock()
    started = time.perf_counter()
    value = {
      'state': state,
      'message': message,
      **self._where(),
      **self._pace(state, started),
      'checkpoint': _newest(self._workdir / 'checkpoints'),
      'loss': self._loss,
      'validation_top1': self._top1,
      'pid': self._lock.holder.pid,
      'host': self._lock.holder.host,
      'updated': _iso(time.time()),
    }
    try:
      json_files.write_json(self._workdir / NAME, value)
    except OSError as error:
      if not self._failed:
        tqdm.tqdm.write(
          f"warning: '{self._workdir / NAME}' cannot be written"
          f' ({error.strerror}); the run continues without it',
          file=sys.stderr,
        )
      self._failed = True
    ended = time.perf_counter()
    self._due_at_epochs = ended + (ended - started) / _SHARE
    self._due_at_steps = max(self._due_at_epochs, ended + _EVERY)

  def _where(self) -> dict[str, Any]:
    keys = 'stage', 'stage_number', 'epoch', 'epochs', 'step', 'steps'
    where: dict[str, Any] = dict.fromkeys((*keys, 'run_step'))
    if self._index is not None:
      stage = self._stages[self._index]
      # Between two epochs, the one that begins.
      step = self._steps_done + self._between_epochs
      epoch = (step - 1) // self._steps_per_epoch + 1
      where = {
        'stage': stage.name,
        'stage_number': self._index + 1,
        'epoch': min(epoch, stage.epochs),
        'epochs': stage.epochs,
        'step': self._steps_done,
        'steps': self._steps[self._index],
        'run_step': sum(self._steps[: self._index]) + self._steps_done,
      }
    return {
      **where,
      'stages': len(self._stages),
      'run_steps': sum(self._steps),
    }

  def _pace(self, state: str, now: float) -> dict[str, Any]:
    left: dict[str, float | None] = {'stage': None, 'run': None}
    if self._last is not None and self._steps_done > self._last[1]:
      seconds, steps = now - self._last[0], self._steps_done - self._last[1]
      self._speed = steps * self._batch_size / seconds
      self._last = now, self._steps_done
    if state == 'finished':
      left = {'stage': 0.0, 'run': 0.0}
    elif self._first is not None and self._steps_done > self._first[1]:
      assert self._index is not None
      step = (now - self._first[0]) / (self._steps_done - self._first[1])
      of_stage = self._steps[self._index] - self._steps_done
      of_run = of_stage + sum(self._steps[self._index + 1 :])
      left = {'stage': of_stage * step, 'run': of_run * step}
    return {'images_per_second': self._speed, 'seconds_left': left}


def _newest(checkpoints: pathlib.Path) -> dict[str, Any] | None:
  """The newest checkpoint; what is still being written has another name."""
  try:
    found = [path for path in checkpoints.iterdir() if path.name.isdecimal()]
    newest = max(found, key=lambda path: int(path.name), default=None)
    if newest is None:
      return None
    return {'number': int(newest.name), 'time': _iso(newest.stat().st_mtime)}
  except OSError:  # it was just deleted
    return None


def _iso(seconds: float) -> str:
  when = datetime.datetime.fromtimestamp(seconds, datetime.UTC)
  return when.isoformat(timespec='seconds')
