"""Locks of the dead, and takers of locks at the same moment.

  python tests/locking.py FOLDER ROUNDS [without]

is a process that takes them. In each round it waits for FOLDER/N.go, tries to
take FOLDER/N and says 'held' or the refusal; who holds it lets go when
FOLDER/N.end is there. `without`: as on a file system that has no flock, where
the later writer is the holder and the others find that when they look.
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

# What is on another host.
ELSEWHERE = {'machine': 'other', 'host': 'other', 'pid': 7}


def leave(workdir, **changes):
  """The lock.json that a dead process of this machine has left, with changes;
  its holder."""
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
