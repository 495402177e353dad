"""Stopping a run at the same step in all of its processes."""

import signal
import threading
from typing import Any

import jax

from dnal_jax import errors
from dnal_jax.parallel import mesh, signals


class StopSignal:
  """Whether SIGTERM, SIGINT or SIGHUP was sent to any of the processes.

  While it is entered, the first such signal requests a stop; a second one ends
  the process at once. What the process ignores is left alone. All processes
  see the request after the same step: each calls `vote` as often as the others,
  between the same device calls, and hands the result to `count` once that call
  is over.
  """

  def __init__(self) -> None:
    self._signalled = False  # in this process
    self._entered = False
    self._announced = False  # by the thread of `signals`
    self.requested = False  # in any of them; the same in all after `count`

  def __enter__(self) -> 'StopSignal':
    self._before: dict[int, Any] = {}
    self._entered = True
    # Python runs signal handlers in the main thread only.
    if threading.current_thread() is threading.main_thread():
      for number in signals.heeded():
        self._before[number] = signal.signal(number, self._on_signal)
      self._announced = signals.begin_run(self._reaction)
      if self._announced:
        self._before = {}
    return self

  def __exit__(self, *exception: object) -> None:
    self._entered = False
    for number, handler in self._before.items():
      signal.signal(number, handler)

  def _on_signal(self, number: int, frame: Any) -> None:
    del frame
    if self._signalled:
      return signals.leave(number)
    self._signalled = True
    if not self._announced:
      signals.announce_first(number, self._reaction())

  def _reaction(self) -> str:
    return 'stopping after this step, and saving' if self._entered else 'ending'

  def vote(self) -> jax.typing.ArrayLike:
    """Whether any process was signalled by now, to be handed to `count` later:
    the answer arrives with the devices' other work, and nothing waits for
    it."""
    return mesh.any_process(self._signalled)

  def count(self, vote: jax.typing.ArrayLike) -> None:
    """Takes in a vote, which is the same in all processes."""
    self.requested = self.requested or bool(vote)

  def raise_if_requested(self, where: str) -> None:
    """Raises Stopped if a stop is requested; to be called once all is saved.
    `where` names the place in the run."""
    if self.requested:
      raise errors.Stopped(
        f'stopped and saved in {where}; the same command goes on from there'
      )
