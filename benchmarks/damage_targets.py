"""What `damage_test.py` damages, and what is then done with it."""

from collections.abc import Callable
import contextlib
import dataclasses
import hashlib
import json
import os
import pathlib
from typing import Any, NamedTuple
from unittest import mock
import warnings

import jax
from jax.experimental.compilation_cache import compilation_cache
import jax.numpy as jnp
import numpy as np
import small_sets

import dnal_jax
from dnal_jax import beginning, errors, status, summary, train
from dnal_jax.config import parse_config, read_config
from dnal_jax.data import Data, sources
from dnal_jax.parallel import compile_cache, mesh
from dnal_jax.workdir import architecture, data_file

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


class Target(NamedTuple):
  """Of all functions the argument is a folder of the trial's own."""

  make: Callable[[pathlib.Path], object]
  use: Callable[[pathlib.Path], str]  # returns the result
  damaged: str  # the part of the folder whose files are damaged
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


_CACHE_KEYS = (
  'jax_compilation_cache_dir',
  'jax_persistent_cache_min_compile_time_secs',
)


@contextlib.contextmanager
def compiled_in(folder):
  """Inside, JAX keeps compiled programs in that folder, as in a command."""
  before = {key: jax.config.values[key] for key in _CACHE_KEYS}
  jax.config.update(_CACHE_KEYS[0], None)
  compilation_cache.reset_cache()
  try:
    with warnings.catch_warnings():
      compile_cache.keep_in(folder)
      jax.config.update(_CACHE_KEYS[1], 0.0)
      yield
  finally:
    for key, value in before.items():
      jax.config.update(key, value)
    compilation_cache.reset_cache()


def use_compiled(root) -> str:
  """Compiles two programs of one name and one of another."""
  found = []
  with compiled_in(root / 'cache'):
    for factor in (2, 3):

      def scaled(x, factor=factor):
        return x * factor

      found.append(float(jax.jit(scaled)(7.0)))
    found.append(float(jax.jit(lambda x: jnp.sin(x) + 1)(7.0)))
  compile_cache.record(root / 'cache', settled=0)
  return str(found)


def config() -> dict[str, Any]:
  values = read_config('quickstart')
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
  widths = summary.summarise(*architecture.read(run / 'architecture.json')[:2])
  result = train.run(parse_config(values), values, run)
  now = status.read(run)['now']
  return f'{digest.hexdigest()} {network.keep} {widths} {result["top1"]} {now}'


def make_stopped(root):
  """A run that was stopped at the end of its warm-up."""
  stop = mock.patch.object(
    beginning, 'enter_next_stage', side_effect=errors.Stopped('here')
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
  'compiled': Target(use_compiled, use_compiled, 'cache', may_refuse=False),
  'stopped': Target(make_stopped, go_on, 'run'),
  'finished': Target(go_on, read_finished, 'run'),
}
