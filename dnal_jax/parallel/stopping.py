"""Stopping a run at the same step in all of its processes."""

import os
import signal
import sys
import threading
from typing import Any

import jax

from dnal_jax import errors
from dnal_jax.parallel import mesh


class StopSignal:
  """Whether someone asks the run to stop: SIGTERM or SIGINT, to any process.

  While it is entered, the first such signal asks; a second leaves at once.
  """

  def __init__(self) -> None:
    self._asked = False  # here
    self.agreed = False  # by all, after the same step

  def __enter__(self) -> 'StopSignal':
    self._before: dict[int, Any] = {}
    # Elsewhere Python has no say over signals.
    if threading.current_thread() is threading.main_thread():
      for number in (signal.SIGTERM, signal.SIGINT):
        self._before[number] = signal.signal(number, self._ask)
    return self

  def __exit__(self, *exception: object) -> None:
    for number, handler in self._before.items():
      signal.signal(number, handler)

  def _ask(self, number: int, frame: Any) -> None:
    del frame
    if self._asked:
      signal.signal(number, signal.SIG_DFL)
      os.kill(os.getpid(), number)
    self._asked = True
    sys.stderr.write(
      f'{signal.Signals(number).name}: stopping after this step, and saving;'
      ' once more leaves at once\n'
    )

  def ask(self) -> jax.typing.ArrayLike:
    """Whether any process was asked by now, to be handed to `agree` later: the
    answer comes with the devices' other work, and nothing waits for it. All
    processes must ask as often, between the same calls."""
    return mesh.any_process(self._asked)

  def agree(self, answer: jax.typing.ArrayLike) -> None:
    """Takes in an answer, which all processes have alike."""
    self.agreed = self.agreed or bool(answer)

  def check(self, where: str) -> None:
    """Raises Stopped if it is agreed on, once all is saved."""
    if self.agreed:
      raise errors.Stopped(
        f'stopped and saved in {where}; the same command goes on from there'
      )
