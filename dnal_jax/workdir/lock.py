"""One run in a folder: a second one is refused, a dead one's place is taken.

Two things hold a folder. The kernel's `flock` of the folder itself lets one of
those in that start on a machine at the same moment, and goes with its process,
however that dies. `lock.json` names the holder, to people and to machines that
the kernel's lock does not reach, as it is with most network file systems (and
where there is no flock at all, it is the lock). What it names is dead

  on this machine      if there is no such process, or a later one by its number
  on another           if it has not written `heard` for STALE seconds, during
  (or another boot     which the newcomer looks on. So clocks may differ, and a
  or container)        process is not dead because a compilation takes minutes:
                       a thread writes, not the loop that trains.

Between machines nothing is atomic: of two that start at the same moment, each
may find the folder free. The later writer is the holder; the other finds that
by `check`, before whatever it writes next, and ends. So does one that was
suspended for longer than STALE when it wakes up.

The folder is locked, not a file in it: nothing is ever deleted or replaced
under the lock, and on NFS, where a file's flock is the server's, no lock of a
dead machine is left behind.
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

from dnal_jax import errors
from dnal_jax.workdir import json_files, layout

# Network file systems may show a file as it was a minute ago.
STALE = 120.0  # seconds
_BEAT = 15.0  # seconds
_NAMED = 5.0  # seconds in which who has the kernel's lock writes its name
_NAME = 'lock.json'


@dataclasses.dataclass(frozen=True)
class Holder:
  """What lock.json says; two are equal if they are the same taking of a lock.
  Times are ISO 8601, by the holder's clock."""

  pid: int
  host: str
  machine: str  # what `_machine` tells there
  born: str | None  # what `_born` tells of the process
  token: str  # of this taking, by chance
  since: str
  heard: str = dataclasses.field(compare=False)

  def told(self) -> str:
    return f'process {self.pid} on host {self.host}, since {self.since}'

  def alive(self) -> bool | None:
    """Whether the process is there; None if it is on another machine."""
    if self.machine != _machine():
      return None
    return self.born is not None and _born(self.pid) == self.born

  def silent(self) -> float:
    """Seconds since it was heard of, as far as clocks agree."""
    heard = datetime.datetime.fromisoformat(self.heard)
    return (datetime.datetime.now(datetime.UTC) - heard).total_seconds()


def holder(workdir: pathlib.Path) -> Holder | None:
  """Who holds the folder, or held it when it died; None if it is free."""
  try:
    found = Holder(**json.loads((workdir / _NAME).read_text()))
    found.silent()
  except (OSError, ValueError, TypeError):
    return None
  return found


class Lock:
  """The folder is this process's while it is entered; makes it if need be.

  Raises:
    UserError: another process has it, which is named; or it cannot be written.
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
      heard=_now('microseconds'),
    )
    self._over = threading.Event()
    self._beating = threading.Thread(target=self._beat, daemon=True)

  def __enter__(self) -> 'Lock':
    try:
      self._workdir.mkdir(parents=True, exist_ok=True)
      self._folder = os.open(self._workdir, os.O_RDONLY)
    except OSError as error:
      raise layout.unwritable_error(self._workdir, error) from error
    try:
      self._lock_here()
      self._succeed(holder(self._workdir))
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
    self._over.set()
    self._beating.join()
    try:
      if holder(self._workdir) == self.holder:
        (self._workdir / _NAME).unlink()
    except OSError as error:  # the next one will find us dead
      print(f'cannot remove {_NAME} ({error.strerror})', file=sys.stderr)
    os.close(self._folder)

  def check(self) -> None:
    """Raises UserError if another process has taken the folder over."""
    now = holder(self._workdir)
    if now is not None and now != self.holder:
      raise errors.UserError(
        f"'{self._workdir}' was taken over by {now.told()}, to which this"
        f' process seemed dead (nothing heard for {STALE:.0f} s); that run goes'
        ' on, this one ends'
      )

  def _lock_here(self) -> None:
    """Takes the kernel's lock, or raises for whoever has it."""
    end = time.monotonic() + _NAMED
    while True:
      try:
        return fcntl.flock(self._folder, fcntl.LOCK_EX | fcntl.LOCK_NB)
      except BlockingIOError:
        # It may be about to write its name, to find one dead, or to end.
        other = holder(self._workdir)
        if (other and other.alive()) or time.monotonic() > end:
          raise self._refusal(other) from None
        time.sleep(0.05)
      except OSError:  # there is none on this file system
        return None

  def _succeed(self, before: Holder | None) -> None:
    """Returns when it is certain that the holder before is no more."""
    if before is None:
      return
    alive = before.alive()
    if alive:
      raise self._refusal(before)
    if alive is None:
      print(
        f"'{self._workdir}' may be in use by {before.told()}; looking for"
        f' {STALE:.0f} s whether that is alive',
        flush=True,
      )
      if not self._goes_silent(before):
        return
    print(
      f"'{self._workdir}' was left locked by {before.told()}, which is dead:"
      ' taking over',
      flush=True,
    )

  def _goes_silent(self, before: Holder) -> bool:
    """Whether it writes nothing until it is stale; False: it has let go."""
    end = time.monotonic() + STALE
    while time.monotonic() < end:
      time.sleep(min(1.0, STALE / 10))
      now = holder(self._workdir)
      if now is None:
        return False
      if now.heard != before.heard:
        raise self._refusal(now)
    return True

  def _refusal(self, other: Holder | None) -> errors.UserError:
    who = other.told() if other else 'another process that is just starting'
    return errors.UserError(
      f"'{self._workdir}' is in use by {who}; wait for that run or stop it, or"
      ' choose another --workdir'
    )

  def _beat(self) -> None:
    """Has others hear of this process, as long as the lock is its own."""
    while not self._over.wait(_BEAT):
      now = holder(self._workdir)
      if now is not None and now != self.holder:
        return
      try:
        self._write()
      except OSError:  # a full disk; no other can take it over then, either
        continue

  def _write(self) -> None:
    self.holder = dataclasses.replace(self.holder, heard=_now('microseconds'))
    value = dataclasses.asdict(self.holder)
    # Where the kernel does not help, others may be writing at the same time.
    json_files.write_json(self._workdir / _NAME, value, part=self.holder.token)


def _now(timespec: str) -> str:
  return datetime.datetime.now(datetime.UTC).isoformat(timespec=timespec)


def _machine() -> str:
  """What the numbers of processes belong to: the boot of a machine, or a
  container in it."""
  parts = [socket.gethostname()]
  try:
    boot = pathlib.Path('/proc/sys/kernel/random/boot_id').read_text().strip()
    parts += [boot, os.readlink('/proc/self/ns/pid')]
  except OSError:
    pass  # not Linux
  return ' '.join(parts)


def _born(pid: int) -> str | None:
  """When a process started, in clock ticks since boot; '' where the system
  does not tell; None if there is no such process."""
  if not pathlib.Path('/proc/self/stat').exists():
    try:
      os.kill(pid, 0)
    except ProcessLookupError:
      return None
    except PermissionError:
      pass  # it is another user's
    return ''
  try:
    told = pathlib.Path(f'/proc/{pid}/stat').read_text(errors='replace')
  except OSError:
    return None
  state, *fields = told.rpartition(')')[2].split()  # names may have brackets
  return None if state in 'ZX' else fields[18]
