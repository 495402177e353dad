"""status.json: where a run is, for those who did not start it.

The first process writes it as the groups of steps end that the loop waits for
anyway, so it costs no thread and no device; every few seconds, but never for
more than a hundredth of the time. It is for people and watchdogs, and a run
depends on it in nothing: what cannot be written is told once, and left out.

  state              running, stopped, failed or finished; a process that was
                     killed leaves 'running' (`status.py` asks the lock, too)
  message            first line of why it was stopped or failed, else null
  stage, stage_number, stages      name, from 1, how many
  epoch, epochs      of the stage; the one under way, from 1
  step, steps        of the stage, done and in all
  run_step, run_steps              of all stages
  images_per_second  since the last change, evaluation and saving included
  seconds_left       {stage, run}: steps that are left times the seconds a step
                     has taken in this stage since the first were compiled,
                     evaluation and saving included. Estimates: stages to come
                     are taken to be as fast, which a cut network is not
  checkpoint         {number, time} of the newest that is whole
  loss               mean per image, of the last step told
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


class StatusFile:
  """Writes status.json while it is entered, and at last how the run ended.

  Raises:
    UserError: from any of its methods, if the folder is no longer `held`.
  """

  def __init__(
    self,
    settings: RunConfig,
    workdir: pathlib.Path,
    held: lock.Lock,
    steps_per_epoch: int,
  ):
    self._workdir, self._held = workdir, held
    self._batch_size = settings.batch_size
    self._steps_per_epoch = steps_per_epoch
    self._stages = settings.stages
    self._steps = [stage.epochs * steps_per_epoch for stage in settings.stages]
    self._index: int | None = None  # of the stage
    self._done = 0  # steps of it
    self._ended = False  # the epoch that these steps fill
    self._first: tuple[float, int] | None = None  # (seconds, steps done) when
    self._mark: tuple[float, int] | None = None  # at the last change of speed
    self._speed: float | None = None
    self._loss: float | None = None
    self._top1: float | None = None
    self._due = self._soon = 0.0  # when it is next written, and may be
    self._failed = False

  def __enter__(self) -> 'StatusFile':
    self._write('running')
    return self

  def __exit__(self, kind: Any, error: BaseException | None, trace: Any):
    if kind is None:
      self._write('finished')
      return
    told = str(error).strip().splitlines() or [kind.__name__]
    stopped = isinstance(error, errors.Stopped | KeyboardInterrupt)
    with contextlib.suppress(errors.UserError):  # it is another's file now
      self._write('stopped' if stopped else 'failed', told[0])

  def stage(self, index: int, done: int) -> None:
    """Stage `index` begins, or goes on, with so many of its steps done."""
    self._index, self._done, self._ended = index, done, True
    self._first = self._mark = self._speed = None
    self._write('running')

  def steps(self, done: int, metrics: Mapping[str, Any]) -> None:
    """So many more steps done; metrics of the last of them."""
    self._done, self._ended = self._done + done, False
    loss = float(metrics['loss']) / self._batch_size
    self._loss = loss if math.isfinite(loss) else None  # JSON has no NaN
    now = time.perf_counter()
    if self._first is None:  # what comes before is compiling
      self._first = self._mark = (now, self._done)
    if now >= self._due:
      self._write('running')

  def epoch(self, top1: float) -> None:
    """An epoch has ended, with this accuracy on the validation split."""
    self._top1, self._ended = top1, True
    if time.perf_counter() >= self._soon:
      self._write('running')

  def check(self) -> None:
    """To be called before anything else is written."""
    self._held.check()

  def _write(self, state: str, message: str | None = None) -> None:
    self.check()
    started = time.perf_counter()
    value = {
      'state': state,
      'message': message,
      **self._where(),
      **self._pace(state, started),
      'checkpoint': _newest(self._workdir / 'checkpoints'),
      'loss': self._loss,
      'validation_top1': self._top1,
      'pid': self._held.holder.pid,
      'host': self._held.holder.host,
      'updated': _iso(time.time()),
    }
    try:
      json_files.write_json(self._workdir / NAME, value)
    except OSError as error:
      if not self._failed:
        tqdm.tqdm.write(
          f"warning: '{self._workdir / NAME}' cannot be written"
          f' ({error.strerror}); the run goes on without',
          file=sys.stderr,
        )
      self._failed = True
    ended = time.perf_counter()
    self._soon = ended + (ended - started) / _SHARE
    self._due = max(self._soon, ended + _EVERY)

  def _where(self) -> dict[str, Any]:
    keys = 'stage', 'stage_number', 'epoch', 'epochs', 'step', 'steps'
    where: dict[str, Any] = dict.fromkeys((*keys, 'run_step'))
    if self._index is not None:
      stage = self._stages[self._index]
      # Between two epochs, the one that begins.
      epoch = (self._done - 1 + self._ended) // self._steps_per_epoch + 1
      where = {
        'stage': stage.name,
        'stage_number': self._index + 1,
        'epoch': min(epoch, stage.epochs),
        'epochs': stage.epochs,
        'step': self._done,
        'steps': self._steps[self._index],
        'run_step': sum(self._steps[: self._index]) + self._done,
      }
    return {
      **where,
      'stages': len(self._stages),
      'run_steps': sum(self._steps),
    }

  def _pace(self, state: str, now: float) -> dict[str, Any]:
    left: dict[str, float | None] = {'stage': None, 'run': None}
    if self._mark is not None and self._done > self._mark[1]:
      seconds, steps = now - self._mark[0], self._done - self._mark[1]
      self._speed = steps * self._batch_size / seconds
      self._mark = now, self._done
    if state == 'finished':
      left = {'stage': 0.0, 'run': 0.0}
    elif self._first is not None and self._done > self._first[1]:
      assert self._index is not None
      step = (now - self._first[0]) / (self._done - self._first[1])
      of_stage = self._steps[self._index] - self._done
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
