"""Locks of dead processes, and processes that take locks at the same moment.

  python tests/locking.py FOLDER ROUNDS [without]

takes locks. In each round N it waits for the file FOLDER/N.go, tries to lock
FOLDER/N, and prints 'held' or the refusal; a holder releases the lock once
FOLDER/N.end exists. `without`: as on a file system that has no flock, where the
process that writes last is the holder, and the others find that in `check`.
"""

import dataclasses
import errno
import fcntl
import os
import pathlib
import sys
import time

from dnal_jax import errors
from dnal_jax.workdir import json_files, lock

# Changes to a holder that put it on another host.
ELSEWHERE = {'machine': 'other', 'host': 'other', 'pid': 7}


def leave(workdir, **changes):
  """Writes the lock.json that a dead process of this machine leaves, with
  changes; returns its holder."""
  dead = dataclasses.replace(
    lock.Lock(workdir).holder, pid=2**22 + 1, born='1', token='dead'
  )
  value = {**dataclasses.asdict(dead), **changes}
  json_files.write_json(workdir / 'lock.json', value, part='test')
  return lock.holder(workdir)


def wait_for(path):
  while not path.exists():
    time.sleep(0.001)


def refused(*arguments):
  raise OSError(errno.ENOTSUP, os.strerror(errno.ENOTSUP))


def main():
  locks, rounds = pathlib.Path(sys.argv[1]), int(sys.argv[2])
  settle = 0.0
  if sys.argv[3:]:
    fcntl.flock = refused
    settle = 0.5
  print('ready', flush=True)
  for n in range(rounds):
    wait_for(locks / f'{n}.go')
    try:
      with lock.Lock(locks / str(n)) as held:
        time.sleep(settle)
        held.check()
        print('held', flush=True)
        wait_for(locks / f'{n}.end')
    except errors.UserError as error:
      print(error, flush=True)


if __name__ == '__main__':
  main()
