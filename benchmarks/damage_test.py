"""Damages data sets, caches and run folders, and looks at what comes of it.

  python benchmarks/damage_test.py 200 [--seed=0] [--only=folder,...]

does so many damages to each of

  folder    a folder of photographs, of a run that has begun
  streamed  a data set of tensorflow-datasets that is streamed, likewise
  resident  one that is kept on the device, likewise
  caches    what the user's cache folder keeps of the last two
  compiled  what it keeps of compiled programs
  stopped   a run folder with checkpoints; the run then goes on
  finished  a run folder; it is loaded, and its result is read

Each time a file is truncated, emptied, deleted, replaced by a pointer of Git
LFS or swapped with another, or one bit of it is flipped. What follows must be
what follows without the damage, or one message that names a file or a folder;
after damage to caches it must be the former. Prints a table, and every other
outcome; the exit code is 1 if there is one.

Not compared is metrics.jsonl.
"""

import argparse
import collections
import contextlib
import io
import pathlib
import random
import shutil
import sys
import tempfile
import traceback

from damage_targets import TARGETS, Target

from dnal_jax import errors
from dnal_jax.parallel import streams

POINTER = (
  b'version https://git-lfs.github.com/spec/v1\n'
  b'oid sha256:' + b'4d7a2146' * 8 + b'\nsize 12345\n'
)


# Damages to the files of a folder.


def truncate(files, rng):
  file = rng.choice(files)
  data = file.read_bytes()
  file.write_bytes(data[: rng.randrange(len(data))])


def flip(files, rng):
  file = rng.choice(files)
  data = bytearray(file.read_bytes())
  data[rng.randrange(len(data))] ^= 1 << rng.randrange(8)
  file.write_bytes(data)


def delete(files, rng):
  rng.choice(files).unlink()


def swap(files, rng):
  a, b = rng.sample(files, 2)
  content = a.read_bytes()
  a.write_bytes(b.read_bytes())
  b.write_bytes(content)


def empty(files, rng):
  rng.choice(files).write_bytes(b'')


def pointer(files, rng):
  rng.choice(files).write_bytes(POINTER)


DAMAGES = (truncate, flip, delete, swap, empty, pointer)


# The trial.


def outcome(target: Target, root: pathlib.Path, right: str) -> str:
  """'right', 'message', or what else came of it."""
  printed = io.StringIO()
  try:
    with contextlib.redirect_stdout(printed):
      result = target.use(root)
  except errors.UserError as error:
    named = str(root) in str(error) and '\n' not in str(error)
    if named and target.may_refuse:
      return 'message'
    return f'this message: {error}'
  except Exception:
    return f'a traceback:\n{traceback.format_exc()}'
  return 'right' if result == right else 'another result'


def trial(name: str, times: int, seed: int) -> collections.Counter[str]:
  """Does so many damages; counts outcomes, and prints those that are wrong."""
  target, rng = TARGETS[name], random.Random(seed)
  streams.quiet_orbax()  # as `cli.main` does
  found = collections.Counter()
  with tempfile.TemporaryDirectory() as directory:
    original = pathlib.Path(directory, 'original')
    root = pathlib.Path(directory, 'root')
    (original / 'run').mkdir(parents=True)
    with contextlib.redirect_stdout(io.StringIO()):
      target.make(original)
      shutil.copytree(original, root)
      right = target.use(root)
    if name not in (
      'stopped',
      'finished',
    ):  # the run has begun, caches are full
      shutil.rmtree(original)
      shutil.copytree(root, original)
    for number in range(times):
      shutil.rmtree(root)
      shutil.copytree(original, root)
      if target.damaged != 'cache' and rng.random() < 0.5:
        shutil.rmtree(root / 'cache', ignore_errors=True)
      files = sorted(
        f for f in (root / target.damaged).rglob('*') if f.is_file()
      )
      damage = rng.choice(DAMAGES)
      damage([f for f in files if f.stat().st_size], rng)
      came = outcome(target, root, right)
      found[came if came in ('right', 'message') else 'wrong'] += 1
      if came not in ('right', 'message'):
        print(f'{name} {number}, {damage.__name__}: {came}', flush=True)
  return found


def main() -> None:
  parser = argparse.ArgumentParser(description=__doc__)
  parser.add_argument('times', type=int)
  parser.add_argument('--seed', type=int, default=0)
  parser.add_argument('--only', default=','.join(TARGETS))
  arguments = parser.parse_args()
  wrong = 0
  print(f'{"damaged":12}{"right":>8}{"message":>8}{"wrong":>8}', flush=True)
  for name in arguments.only.split(','):
    found = trial(name, arguments.times, arguments.seed)
    print(
      f'{name:12}{found["right"]:>8}{found["message"]:>8}{found["wrong"]:>8}',
      flush=True,
    )
    wrong += found['wrong']
  sys.exit(wrong > 0)


if __name__ == '__main__':
  main()
