"""Multi-process runs: joining the processes, and exchanging values.

Every process runs the same program over the devices of all (`mesh.py`). The
primary process, number 0, alone writes files and prints.
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
from dnal_jax.parallel import mesh, signals

T = TypeVar('T')

# Time without a heartbeat after which JAX takes a process for dead.
_HEARTBEAT_TIMEOUT = 30  # seconds

_c_callbacks: list[Any] = []  # C code does not keep them alive

# Messages of errors that follow from the death of another process; JAX has no
# type for them.
_LOST_PROCESS = re.compile(
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
  """Joins the processes of the run; to be called before JAX is used.

  `how` is 'auto', 'on' or 'off'. 'auto' joins if an argument is given or the
  environment names other processes (`is_cluster`). 'on' joins in any case, and
  leaves it to JAX to find the others. Afterwards only the primary process
  prints to stdout.

  Raises:
    UserError: the arguments contradict `how`, the others cannot be reached, or
      JAX cannot use a platform that JAX_PLATFORMS names.
  """
  arguments = coordinator_address, num_processes, process_id
  given = arguments != (None,) * 3
  if how == 'off' or (how == 'auto' and not given and not is_cluster()):
    if given:
      raise errors.UserError(
        '--distributed=off, but others are named by --coordinator_address,'
        ' --num_processes or --process_id; drop one of the two'
      )
    mesh.check_platforms()
    return
  coordinator_address = coordinator_address or os.environ.get(
    'JAX_COORDINATOR_ADDRESS'
  )
  num_processes = _number('JAX_NUM_PROCESSES', num_processes)
  process_id = _number('JAX_PROCESS_ID', process_id)
  # `StopSignal` handles SIGTERM, for one process and for many alike.
  jax.config.update('jax_enable_preemption_service', False)
  try:
    jax.distributed.initialize(
      coordinator_address,
      num_processes,
      process_id,
      heartbeat_timeout_seconds=_HEARTBEAT_TIMEOUT,
    )
  except (ValueError, RuntimeError, IndexError) as error:
    first_line = str(error).splitlines()[0]
    raise errors.UserError(
      f'cannot join the other processes ({first_line}); on each, name'
      ' --coordinator_address=HOST:PORT (of the first), --num_processes and'
      ' --process_id (0 for the first)'
    ) from error
  mesh.check_platforms()
  _report_abort()
  if not is_primary():
    sys.stdout = open(os.devnull, 'w')  # noqa: SIM115 - as long as the process


def is_cluster() -> bool:
  """Whether the environment names other processes: JAX_COORDINATOR_ADDRESS,
  Slurm, Open MPI, or a Cloud TPU slice's list of workers."""
  several = ('SLURM_STEP_NUM_TASKS', 'OMPI_COMM_WORLD_SIZE')
  return (
    'JAX_COORDINATOR_ADDRESS' in os.environ
    or any(int(os.environ.get(name) or 1) > 1 for name in several)
    or ',' in os.environ.get('TPU_WORKER_HOSTNAMES', '')
  )


def _number(name: str, argument: int | None) -> int | None:
  """The argument if given, else the environment variable if set, else None."""
  value = os.environ.get(name)
  if argument is not None or value is None:
    return argument
  try:
    return int(value)
  except ValueError:
    raise errors.UserError(
      f"{name} is '{value}'; it must be a number"
    ) from None


def is_primary() -> bool:
  """Whether this is the process that writes files and prints."""
  return jax.process_index() == 0


def allgather_json(value: Any) -> list[Any]:
  """The values (JSON) of all processes, by number. All must call it."""
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
  """The result of `body` in the primary process, for which the others wait;
  None in those.

  Raises:
    UserError: in all processes, if `body` raises it in the primary one.
  """
  if jax.process_count() == 1:
    return body()
  with futures.ThreadPoolExecutor(1) as pool:
    work = pool.submit(body) if is_primary() else None
    # In short rounds, because a collective operation fails after 30 s.
    while not allgather_json(_is_done(work))[0]:
      pass
  error = work.exception() if work else None
  message = str(error) if isinstance(error, errors.UserError) else None
  message = allgather_json(message)[0]
  if message is not None:
    raise errors.UserError(message)
  return work.result() if work else None


def _is_done(work: futures.Future | None) -> bool:
  """Whether the work is done; waits for it up to a second."""
  return work is not None and bool(futures.wait([work], timeout=1.0).done)


def check_shared_file(path: pathlib.Path) -> None:
  """Raises UserError if a process does not see a file that the primary process
  has written."""
  seen = allgather_json(path.exists())
  if not all(seen):
    others = ', '.join(str(i) for i, sees in enumerate(seen) if not sees)
    raise errors.UserError(
      f"'{path}', written by process 0, is not seen by process {others}; name a"
      ' --workdir that all hosts share'
    )


@contextlib.contextmanager
def report_lost_process() -> Iterator[None]:
  """Turns errors that follow from the loss of another process into one message.

  Raises:
    Stopped: in place of such an error.
  """
  try:
    yield
  except (errors.UserError, errors.Stopped):
    raise
  except Exception as error:
    if jax.process_count() == 1 or not _LOST_PROCESS.search(str(error)):
      raise
    first_line = str(error).splitlines()[0]
    raise errors.Stopped(f'{_lost_message()} ({first_line})') from error


def _lost_message() -> str:
  return (
    f'process {jax.process_index()} lost another one; see what that one'
    ' printed. The same command on all hosts goes on from the last checkpoint'
  )


def _report_abort() -> None:
  """Makes this process end with a message and code 75 when JAX's runtime aborts
  it, as it does with a process that waits for one that died."""

  def exit_at_abort(number: int) -> None:
    del number
    signals.announce(message)
    os._exit(errors.AGAIN)

  message = _lost_message()
  # Not by Python's `signal`: it would run the handler at the interpreter's next
  # instruction, which never comes.
  _c_callbacks.append(ctypes.CFUNCTYPE(None, ctypes.c_int)(exit_at_abort))
  ctypes.CDLL(None).signal(int(signal.SIGABRT), _c_callbacks[-1])


def exit_now(code: int) -> NoReturn:
  """Ends this process without waiting for other processes or for threads."""
  try:
    sys.stdout.flush()
    sys.stderr.flush()
  finally:  # a closed pipe or a full disk may make flushing fail
    os._exit(code)
