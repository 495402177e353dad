"""Signals that ask a process to stop: SIGTERM, SIGINT (Ctrl-C), and SIGHUP (the
terminal was closed).

`main` calls `listen` before it imports JAX. From then on, the first such signal
ends the process while no run has begun, and belongs to the run afterwards
(`stopping.StopSignal`); the second one ends the process at once. That holds for
process 1 of a container as well, to which the kernel sends no signal that is
not handled.

Imports the standard library only.
"""

from collections.abc import Callable
import contextlib
import ctypes
import os
import select
import signal
import threading
from typing import Any

from dnal_jax import errors

_STOP = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)

_listens = threading.Event()
_ending = threading.Lock()  # never released
# Says what the first signal makes the run do; None: no run has begun.
_run_reaction: Callable[[], str] | None = None


def heeded() -> list[signal.Signals]:
  """The signals that this process does not ignore.

  `nohup` starts a process that ignores SIGHUP, and a script that starts one in
  the background lets it ignore SIGINT; both expect it to go on doing so.
  """
  return [n for n in _STOP if signal.getsignal(n) != signal.SIG_IGN]


def listen() -> None:
  """Handles signals from now to the end of this process."""
  for number in heeded():
    signal.signal(number, _end_before_run)
  # Python runs handlers in the main thread, between two of its instructions.
  # That thread may wait for a compiler or for other processes for minutes.
  pipe, wakeup = os.pipe()
  os.set_blocking(wakeup, False)
  signal.set_wakeup_fd(wakeup, warn_on_full_buffer=False)
  threading.Thread(target=_watch, args=(pipe,), daemon=True).start()
  _listens.set()


def begin_run(reaction: Callable[[], str]) -> bool:
  """To be called by a run that handles the first signal by itself from now on.

  Returns whether this process listens. If so, it has nothing to do but the run,
  whose handlers may stay when the run has ended. The first signal is then
  announced from here with the words of `reaction`, as the main thread may be
  compiling for a minute.
  """
  global _run_reaction
  _run_reaction = reaction
  return _listens.is_set()


def announce_first(number: int, reaction: str) -> None:
  """Writes a line about the first signal and the reaction to it."""
  name = signal.Signals(number).name
  announce(f'{name}: {reaction}; once more leaves at once')


def obey_as_process_1() -> None:
  """Has SIGTERM and SIGHUP end this process if it is process 1 of a container,
  as they end any other, unless they are handled or ignored."""
  if os.getpid() == 1:
    for number in (signal.SIGTERM, signal.SIGHUP):
      if signal.getsignal(number) == signal.SIG_DFL:
        signal.signal(number, lambda number, frame: leave(number))


def leave(number: int) -> None:
  """Ends this process at once: by the signal or, where the kernel does not let
  it, with the exit code that shells give to that. Returns if another thread is
  ending it."""
  if _ending.acquire(blocking=False):
    announce(f'{signal.Signals(number).name}: leaving at once')
    # Python's own function works in the main thread only. None is SIG_DFL.
    ctypes.CDLL(None).signal(int(number), None)
    signal.raise_signal(number)
    os._exit(128 + number)


def announce(line: str) -> None:
  """Writes a line to standard error, from a handler or from another thread,
  unless that would wait for whoever reads it."""
  # Not by `sys.stderr`, into which this thread may just be writing.
  with contextlib.suppress(OSError):
    if select.select([], [2], [], 0)[1]:
      os.write(2, f'{line}\n'.encode())


def _watch(pipe: int) -> None:
  """Does what must not wait for the main thread."""
  signalled = False
  while True:
    for number in os.read(pipe, 16):
      if number in _STOP:
        if _run_reaction is None:
          _end_before_run(number, None)
        elif signalled:
          leave(number)
        else:
          announce_first(number, _run_reaction())
        signalled = True


def _end_before_run(number: int, frame: Any) -> None:
  """Ends this process with a message, in whichever thread is first."""
  del frame
  if _ending.acquire(blocking=False):
    name = signal.Signals(number).name
    announce(f'{name}: ended before the run began; the same command starts it')
    interrupted = number == signal.SIGINT
    os._exit(128 + number if interrupted else errors.AGAIN)
