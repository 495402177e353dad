"""Damages data sets, caches and run folders, and looks at what comes of it.

  python benchmarks/damage_test.py 200 [--seed=0] [--only=folder,...]

does so many damages to each of

  folder    a folder of photographs, of a run that has begun
  streamed  a data set of tensorflow-datasets that is streamed, likewise
  resident  one that is kept on the device, likewise
  caches    what the user's cache folder keeps of the last two
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
from collections.abc import Callable
import contextlib
import dataclasses
import hashlib
import io
import json
import os
import pathlib
import random
import shutil
import sys
import tempfile
import traceback
from typing import Any, NamedTuple
from unittest import mock

import jax
import numpy as np
import small_sets

from configs import quickstart
import dnal_jax
from dnal_jax import errors, status, summary, train
from dnal_jax.config import parse_config
from dnal_jax.data import Data, sources
from dnal_jax.parallel import mesh
from dnal_jax.workdir import architecture, data_file

POINTER = (
  b'version https://git-lfs.github.com/spec/v1\n'
  b'oid sha256:' + b'4d7a2146' * 8 + b'\nsize 12345\n'
)
RUN = {
  'network.width': 0.25,
  'tensorboard': False,
  'checkpoint_steps': 10,
  'batch_size': 64,
  'data.train_limit': 1280,
  'penalty': 0.2,
  'stages.warmup.epochs': 1,
  'stages.search.epochs': 1,
  'stages.finetune.epochs': 1,
}


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


# What is damaged, in a folder `root`, and what is then done with it: `make` and
# `use` get the folder, and what `use` returns is the result.


class Target(NamedTuple):
  make: Callable[[pathlib.Path], object]
  use: Callable[[pathlib.Path], str]
  damaged: str  # the part of the folder
  may_refuse: bool = True


def read_all(root: pathlib.Path, data: Data) -> str:
  """Reads a data set for the run in `root`/run: all that it would train and
  evaluate on, in order."""
  digest = hashlib.sha256()

  def add(arrays):
    for array in jax.tree.leaves(jax.device_get(arrays)):
      digest.update(np.asarray(array).tobytes())

  with (
    mock.patch.dict(os.environ, XDG_CACHE_HOME=str(root / 'cache')),
    jax.set_mesh(mesh.make_mesh()),
    contextlib.closing(
      sources.open_source(data, seed=0, batch_size=4, eval_batch_size=4)
    ) as source,
  ):
    run = root / f'run-{data.name}'
    data_file.check_or_write(run, data.title, source.contents)
    for step in range(source.steps_per_epoch):
      add(source.inputs(step, 1))
    for split in ('validation', 'test'):
      for inputs in source.eval_inputs(split):
        add(inputs)
  return digest.hexdigest()


def use_folder(root):
  folder = str(root / 'data')
  return read_all(root, dataclasses.replace(small_sets.STREAMED, folder=folder))


def use_streamed(root):
  data = {'name': 'photographs', 'dir': str(root / 'data')}
  return read_all(root, dataclasses.replace(small_sets.STREAMED, **data))


def use_resident(root):
  data = dataclasses.replace(small_sets.RESIDENT, dir=str(root / 'data'))
  return read_all(root, data)


def use_caches(root):
  return use_streamed(root) + use_resident(root)


def make_records(root):
  small_sets.write_records(root / 'data', 'photographs', 3)
  small_sets.write_records(root / 'data', 'mnist', 1)


def config() -> dict[str, Any]:
  values = quickstart.get_config()
  values.update_from_flattened_dict(RUN)
  return values.to_dict()


def go_on(root) -> str:
  """The result of the run, times apart, and its weights."""
  values = config()
  result = train.run(parse_config(values), values, root / 'run')
  for stage in result['stages']:
    del stage['seconds']
  return json.dumps(result) + read_finished(root)


def read_finished(root) -> str:
  run = root / 'run'
  values = config()
  digest = hashlib.sha256()
  network, variables = dnal_jax.load(run)
  for array in jax.tree.leaves(variables):
    digest.update(np.asarray(array).tobytes())
  widths = summary.summarise(*architecture.read(run / 'architecture.json'))
  result = train.run(parse_config(values), values, run)
  now = status.read(run)['now']
  return f'{digest.hexdigest()} {network.keep} {widths} {result["top1"]} {now}'


def make_stopped(root):
  """A run that was stopped at the end of its warm-up."""
  stop = mock.patch.object(
    train, '_enter_next_stage', side_effect=errors.Stopped('here')
  )
  with stop, contextlib.suppress(errors.Stopped):
    go_on(root)


TARGETS = {
  'folder': Target(
    lambda root: small_sets.write_folder(root / 'data'), use_folder, 'data'
  ),
  'streamed': Target(make_records, use_streamed, 'data/photographs'),
  'resident': Target(make_records, use_resident, 'data/mnist'),
  'caches': Target(make_records, use_caches, 'cache', may_refuse=False),
  'stopped': Target(make_stopped, go_on, 'run'),
  'finished': Target(go_on, read_finished, 'run'),
}


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
