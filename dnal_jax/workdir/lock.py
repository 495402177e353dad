"""Allows one run per folder: a second one is refused, a dead one replaced.

Two locks work together.

  flock        The kernel's lock of the folder itself. Of several processes that
               start on one machine at the same moment, one gets it. The kernel
               releases it when the process dies.
  lock.json    Names the holder, for people and for machines that do not share
               the kernel's lock, as with most network file systems. Where there
               is no flock at all, it is the only lock.

The process that lock.json names counts as dead

  on this machine    if no process has that number, or one that started later;
  on another one     (or in another boot or container) if it writes no heartbeat
                     while a newcomer watches for STALE_SECONDS. Clocks need not
                     agree. A thread writes the heartbeat, not the training
                     loop, so a compilation of minutes does not matter.

Between machines nothing is atomic: two processes that start at the same moment
may both find the folder free. The one that writes lock.json last is the holder;
the other finds that in `check`, before it next writes anything, and ends. So
does a process that was suspended for longer than STALE_SECONDS.

The folder is locked, not a file in it, so that nothing is deleted or replaced
under the lock. On NFS, where the server keeps the locks of files, a machine
that dies leaves no lock behind.
"""

import dataclasses
import datetime
import fcntl
import json
import os
import pathlib
import secrets
import socket
import sys
import threading
import time
from typing import Any

from dnal_jax import errors
from dnal_jax.workdir import json_files, layout

# Network file systems may show a file as it was a minute ago.
STALE_SECONDS = 120.0
_HEARTBEAT_SECONDS = 15.0
# How long the process that has the flock may take to write lock.json.
_NAMING_SECONDS = 5.0
_NAME = 'lock.json'
_NEW_NAMES = {'heard': 'heartbeat'}  # keys that the first version wrote


@dataclasses.dataclass(frozen=True)
class Holder:
  """The content of lock.json. Two are equal if they are of the same `Lock`, at
  any heartbeat. Times are ISO 8601, by the holder's clock."""

  pid: int
  host: str
  machine: str  # `_machine()` of the holder
  born: str | None  # `_born(pid)` there
  token: str  # random, of one `Lock`
  since: str
  heartbeat: str = dataclasses.field(compare=False)  # time of the latest

  def describe(self) -> str:
    return f'process {self.pid} on host {self.host}, since {self.since}'

  def alive(self) -> bool | None:
    """Whether the process exists; None if it is on another machine."""
    if self.machine != _machine():
      return None
    return self.born is not None and _born(self.pid) == self.born

  def seconds_since_heartbeat(self) -> float:
    """As far as this machine's clock and the holder's agree."""
    heartbeat = datetime.datetime.fromisoformat(self.heartbeat)
    return (datetime.datetime.now(datetime.UTC) - heartbeat).total_seconds()


def holder(workdir: pathlib.Path) -> Holder | None:
  """The holder of the folder, alive or dead; None if the folder is free."""
  try:
    value = json.loads((workdir / _NAME).read_text())
    value: Any = {_NEW_NAMES.get(key, key): v for key, v in value.items()}
    found = Holder(**value)
    found.seconds_since_heartbeat()
  except (OSError, ValueError, TypeError, AttributeError):
    return None
  return found


class Lock:
  """Holds the folder for this process while entered; creates it if need be.

  Raises:
    UserError: another process holds it, which is named; or it cannot be
      written.
  """

  def __init__(self, workdir: pathlib.Path):
    self._workdir = workdir
    self.holder = Holder(
      pid=os.getpid(),
      host=socket.gethostname(),
      machine=_machine(),
      born=_born(os.getpid()),
      token=secrets.token_hex(8),
      since=_now('seconds'),
      heartbeat=_now('microseconds'),
    )
    self._released = threading.Event()
    self._beating = threading.Thread(target=self._beat, daemon=True)

  def __enter__(self) -> 'Lock':
    try:
      self._workdir.mkdir(parents=True, exist_ok=True)
      self._folder = os.open(self._workdir, os.O_RDONLY)
    except OSError as error:
      raise layout.unwritable_error(self._workdir, error) from error
    try:
      self._flock()
      self._replace(holder(self._workdir))
      try:
        self._write()
      except OSError as error:
        raise layout.unwritable_error(self._workdir, error) from error
    except BaseException:
      os.close(self._folder)
      raise
    self._beating.start()
    return self

  def __exit__(self, *exception: object) -> None:
    self._released.set()
    self._beating.join()
    try:
      if holder(self._workdir) == self.holder:
        (self._workdir / _NAME).unlink()
    except OSError as error:  # the next run will find this process dead
      print(f'cannot remove {_NAME} ({error.strerror})', file=sys.stderr)
    os.close(self._folder)

  def check(self) -> None:
    """Raises UserError if another process has taken the folder over."""
    now = holder(self._workdir)
    if now is not None and now != self.holder:
      raise errors.UserError(
        f"'{self._workdir}' was taken over by {now.describe()}, to which this"
        f' process seemed dead (no heartbeat for {STALE_SECONDS:.0f} s); that'
        ' run goes on, this one ends'
      )

  def _flock(self) -> None:
    """Takes the kernel's lock; raises UserError if another process has it."""
    deadline = time.monotonic() + _NAMING_SECONDS
    while True:
      try:
        return fcntl.flock(self._folder, fcntl.LOCK_EX | fcntl.LOCK_NB)
      except BlockingIOError:
        # The other process may be about to write lock.json, to find the holder
        # before it dead, or to end.
        other = holder(self._workdir)
        if (other and other.alive()) or time.monotonic() > deadline:
          raise self._in_use(other) from None
        time.sleep(0.05)
      except OSError:  # this file system has no flock
        return None

  def _replace(self, before: Holder | None) -> None:
    """Returns once the holder before is certain to be dead or to have ended;
    raises UserError if it is alive."""
    if before is None:
      return
    alive = before.alive()
    if alive:
      raise self._in_use(before)
    if alive is None:
      print(
        f"'{self._workdir}' may be in use by {before.describe()}; waiting"
        f' {STALE_SECONDS:.0f} s for its heartbeat',
        flush=True,
      )
      if not self._turns_stale(before):
        return
    print(
      f"'{self._workdir}' was left locked by {before.describe()}, which is"
      ' dead: taking over',
      flush=True,
    )

  def _turns_stale(self, before: Holder) -> bool:
    """True if there is no heartbeat in STALE_SECONDS, False if the folder is
    released; raises UserError at a heartbeat."""
    deadline = time.monotonic() + STALE_SECONDS
    while time.monotonic() < deadline:
      time.sleep(min(1.0, STALE_SECONDS / 10))
      now = holder(self._workdir)
      if now is None:
        return False
      if now.heartbeat != before.heartbeat:
        raise self._in_use(now)
    return True

  def _in_use(self, other: Holder | None) -> errors.InUse:
    who = other.describe() if other else 'another process that is just starting'
    return errors.InUse(
      f"'{self._workdir}' is in use by {who}; wait for that run or stop it, or"
      ' choose another --workdir'
    )

  def _beat(self) -> None:
    """Writes heartbeats until the lock is released or taken over."""
    while not self._released.wait(_HEARTBEAT_SECONDS):
      now = holder(self._workdir)
      if now is not None and now != self.holder:
        return
      try:
        self._write()
      except OSError:  # a full disk, on which no other can take over either
        continue

  def _write(self) -> None:
    self.holder = dataclasses.replace(
      self.holder, heartbeat=_now('microseconds')
    )
    value = dataclasses.asdict(self.holder)
    # Without flock, other processes may be writing at the same time.
    json_files.write_json(self._workdir / _NAME, value, part=self.holder.token)


def _now(timespec: str) -> str:
  return datetime.datetime.now(datetime.UTC).isoformat(timespec=timespec)


def _machine() -> str:
  """Identifies what process numbers are unique in: one boot of a machine, or a
  container."""
  parts = [socket.gethostname()]
  try:
    boot = pathlib.Path('/proc/sys/kernel/random/boot_id').read_text().strip()
    parts += [boot, os.readlink('/proc/self/ns/pid')]
  except OSError:
    pass  # not Linux
  return ' '.join(parts)


def _born(pid: int) -> str | None:
  """When a process started, in clock ticks since boot; '' if the system does
  not say; None if there is no such process."""
  if not pathlib.Path('/proc/self/stat').exists():
    try:
      os.kill(pid, 0)
    except ProcessLookupError:
      return None
    except PermissionError:
      pass  # another user's process
    return ''
  try:
    stat = pathlib.Path(f'/proc/{pid}/stat').read_text(errors='replace')
  except OSError:
    return None
  # The name of the program comes before, and may contain brackets.
  state, *fields = stat.rpartition(')')[2].split()
  return None if state in 'ZX' else fields[18]
