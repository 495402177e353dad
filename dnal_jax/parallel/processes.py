"""Processes that train as one: joining them, and exchanging values.

Every process runs the same program over the devices of all (`mesh.py`); the
primary one alone writes files and prints.
"""

from collections.abc import Callable, Iterator
from concurrent import futures
import contextlib
import ctypes
import json
import os
import pathlib
import re
import signal
import sys
from typing import Any, NoReturn, TypeVar

import jax
from jax.experimental import multihost_utils
import numpy as np

from dnal_jax import errors

T = TypeVar('T')

# A process that has not been heard of for so long is taken for dead.
_HEARTBEAT_SECONDS = 30

_kept: list[Any] = []  # callbacks of C, which does not keep them alive

# What errors say that come of another process's death; JAX has no type for it.
_OF_LOSS = re.compile(
  r'gloo|nccl|connection (closed|reset|refused)|unavailable|deadline_exceeded'
  r'|aborted|coordination service|heartbeat',
  re.IGNORECASE,
)


def join(
  how: str,
  *,
  coordinator_address: str | None,
  num_processes: int | None,
  process_id: int | None,
) -> None:
  """Makes this process one of several, before JAX is used for anything else.

  `how` is 'auto', 'on' or 'off'. 'auto' does so if there are others: told by
  the arguments, by JAX_COORDINATOR_ADDRESS, JAX_NUM_PROCESSES and
  JAX_PROCESS_ID, by Slurm, by Open MPI, or by a Cloud TPU slice's list of
  workers. 'on' leaves it to JAX to find them, and fails if it finds none.
  Processes that are not the first print errors only.

  Raises:
    UserError: the arguments do not fit, or the others cannot be reached.
  """
  told = coordinator_address, num_processes, process_id
  if how == 'off' or (
    how == 'auto' and told == (None,) * 3 and not is_cluster()
  ):
    if told != (None,) * 3:
      raise errors.UserError(
        '--distributed=off, but others are named by --coordinator_address,'
        ' --num_processes or --process_id; drop one of the two'
      )
    return
  coordinator_address = coordinator_address or os.environ.get(
    'JAX_COORDINATOR_ADDRESS'
  )
  num_processes = _number('JAX_NUM_PROCESSES', num_processes)
  process_id = _number('JAX_PROCESS_ID', process_id)
  # Stopping is agreed on below, for one process and for many alike.
  jax.config.update('jax_enable_preemption_service', False)
  try:
    jax.distributed.initialize(
      coordinator_address,
      num_processes,
      process_id,
      heartbeat_timeout_seconds=_HEARTBEAT_SECONDS,
    )
  except (ValueError, RuntimeError, IndexError) as error:
    first_line = str(error).splitlines()[0]
    raise errors.UserError(
      f'cannot join the other processes ({first_line}); on each, name'
      ' --coordinator_address=HOST:PORT (of the first), --num_processes and'
      ' --process_id (0 for the first)'
    ) from error
  _tell_abort()
  if not is_primary():
    sys.stdout = open(os.devnull, 'w')  # noqa: SIM115 - as long as the process


def is_cluster() -> bool:
  """Whether the environment tells of other processes."""
  several = ('SLURM_STEP_NUM_TASKS', 'OMPI_COMM_WORLD_SIZE')
  return (
    'JAX_COORDINATOR_ADDRESS' in os.environ
    or any(int(os.environ.get(name) or 1) > 1 for name in several)
    or ',' in os.environ.get('TPU_WORKER_HOSTNAMES', '')
  )


def _number(name: str, told: int | None) -> int | None:
  value = os.environ.get(name)
  if told is not None or value is None:
    return told
  try:
    return int(value)
  except ValueError:
    raise errors.UserError(
      f"{name} is '{value}'; it must be a number"
    ) from None


def is_primary() -> bool:
  """Whether this process writes and prints."""
  return jax.process_index() == 0


def allgather_json(value: Any) -> list[Any]:
  """The (JSON) values of all processes, in their order; waits for them."""
  if jax.process_count() == 1:
    return [value]
  text = np.frombuffer(json.dumps(value).encode(), np.uint8)
  sizes = multihost_utils.process_allgather(np.array(len(text)))
  padded = np.zeros(max(sizes), np.uint8)
  padded[: len(text)] = text
  texts = multihost_utils.process_allgather(padded)
  return [
    json.loads(bytes(text[:size]))
    for text, size in zip(texts, sizes, strict=True)
  ]


def run_on_primary(body: Callable[[], T]) -> T | None:
  """Runs `body` in the first process, for which the others wait; None there.

  Raises:
    UserError: in all of them, what `body` raises in the first.
  """
  if jax.process_count() == 1:
    return body()
  with futures.ThreadPoolExecutor(1) as pool:
    work = pool.submit(body) if is_primary() else None
    # They ask again and again, as waiting for one process ends after 30 s.
    while not allgather_json(_over(work))[0]:
      pass
  error = work.exception() if work else None
  told = str(error) if isinstance(error, errors.UserError) else None
  told = allgather_json(told)[0]
  if told is not None:
    raise errors.UserError(told)
  return work.result() if work else None


def _over(work: futures.Future | None) -> bool:
  """Whether it is done, within a second."""
  return work is not None and bool(futures.wait([work], timeout=1.0).done)


def check_shared_file(path: pathlib.Path) -> None:
  """Raises UserError if a process does not see what the first one has made."""
  seen = allgather_json(path.exists())
  if not all(seen):
    blind = ', '.join(str(i) for i, sees in enumerate(seen) if not sees)
    raise errors.UserError(
      f"'{path}', written by process 0, is not seen by process {blind}; name a"
      ' --workdir that all hosts share'
    )


@contextlib.contextmanager
def report_lost_process() -> Iterator[None]:
  """Tells in one message that another process was lost.

  Raises:
    Stopped: instead of the error that came of it.
  """
  try:
    yield
  except (errors.UserError, errors.Stopped):
    raise
  except Exception as error:
    if jax.process_count() == 1 or not _OF_LOSS.search(str(error)):
      raise
    told = str(error).splitlines()[0]
    raise errors.Stopped(f'{_lost()} ({told})') from error


def _lost() -> str:
  return (
    f'process {jax.process_index()} lost another one; see what that one'
    ' printed. The same command on all hosts goes on from the last checkpoint'
  )


def _tell_abort() -> None:
  """Has this process end with a message and code 75 where JAX's runtime aborts
  it: that is what it does in a process that waits for one that died."""

  def leave_now(number: int) -> None:
    del number
    os.write(2, f'{told}\n'.encode())
    os._exit(errors.AGAIN)

  told = _lost()
  # A handler of Python's own would never run: it waits for the interpreter's
  # next instruction, and the abort for nothing.
  _kept.append(ctypes.CFUNCTYPE(None, ctypes.c_int)(leave_now))
  ctypes.CDLL(None).signal(int(signal.SIGABRT), _kept[-1])


def exit_now(code: int) -> NoReturn:
  """Ends this process without waiting for others, which may never come, or
  for threads that wait for a disk."""
  try:
    sys.stdout.flush()
    sys.stderr.flush()
  finally:  # whether or not there is anyone to read, or a disk to write to
    os._exit(code)
