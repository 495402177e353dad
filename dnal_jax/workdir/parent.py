"""Networks that a run takes from the folder of another run: the one that it
begins with, and a teacher.

at 'warmup'        DIR/warmup, the full network that the run has warmed up; DIR
                   of a run that did nothing else
at 'end'           DIR, the network with which the run ended, pruned or not
at 'architecture'  the channels of that network, without its weights
"""

from collections.abc import Mapping
import pathlib
from typing import Any, NamedTuple

import jax

from dnal_jax import errors, nn, paths, trees
from dnal_jax.config import RunConfig
from dnal_jax.data.contents import Contents
from dnal_jax.data.preprocessing import Preprocessing
from dnal_jax.graph import walk
from dnal_jax.parallel import mesh
from dnal_jax.training import stages
from dnal_jax.workdir import data_file, json_files, saved_model

WARMUP = 'warmup'  # the folder in that of a run


class Parent(NamedTuple):
  """What a run begins with."""

  keep: nn.Keep  # the channels that are left; {} for all
  # What it has trained: all, or all but the last layer, if that is of other
  # classes, or nothing.
  variables: dict[str, Any]
  new_head: bool


def read(config: RunConfig, contents: Contents) -> Parent:
  """The network that `config.init_from` names, for a run on a data set of
  `contents`.

  Raises:
    UserError: there is none, or it is another network, or was trained on other
      data or on images that this run validates with; names both values.
  """
  assert config.init_from is not None
  workdir, at = paths.local('init_from', config.init_from), config.init_at
  folder = workdir / WARMUP if at == 'warmup' else workdir
  if at == 'warmup' and not folder.is_dir() and _warmed_up_only(workdir):
    folder = workdir
  if not folder.is_dir():
    raise errors.UserError(
      f"init_from is '{workdir}', but there is no folder '{folder}', which a"
      ' run writes at the end of its warm-up (earlier versions did not); name'
      ' the folder of a run'
    )
  model = saved_model.load(folder)
  _check_network(folder, config)
  same_classes = model.class_names == contents.class_names
  if at == 'warmup':
    _check_data(workdir, model, config, contents)
  full = walk.graph_of(config.build(), config.image_shape).gates
  left = walk.graph_of(model.net, config.image_shape).gates
  keep = {} if left == full else {gate: left.get(gate, ()) for gate in full}
  if at == 'architecture':
    return Parent(keep, {}, new_head=False)
  variables = trees.flatten(jax.device_get(model.variables))
  if not same_classes:
    variables = {
      path: array
      for path, array in variables.items()
      if not path.startswith('params/head/logits/')
    }
  return Parent(keep, trees.unflatten(variables), not same_classes)


def read_teacher(
  config: RunConfig, teacher: str | None, workdir: pathlib.Path
) -> tuple[Any, Any]:
  """The network and the variables that a stage's `distill.teacher` names, for a
  run in `workdir`; (None, None) without a teacher.

  Raises:
    UserError: there is none, or its images or classes are others.
  """
  if teacher is None:
    return None, None
  folder = workdir / WARMUP
  if teacher != stages.WARMUP:
    folder = paths.local('distill.teacher', teacher)
  model = saved_model.load(folder)
  saved = json_files.read_json(folder / 'architecture.json')
  _check_same(
    folder,
    {
      'the image shape': (saved['image_shape'], list(config.image_shape)),
      'the number of classes': (model.net.classes, config.classes),
    },
    key='distill.teacher',
  )
  return model.net, mesh.put_replicated(model.variables)


def _warmed_up_only(workdir: pathlib.Path) -> bool:
  """Whether the folder is of a finished run that has not pruned its network."""
  path = workdir / 'result.json'
  if not path.exists():
    return False
  result = json_files.read_json(path)
  return isinstance(result, Mapping) and result.get('learned', True) is None


def _check_network(folder: pathlib.Path, config: RunConfig) -> None:
  saved = json_files.read_json(folder / 'architecture.json')
  network, shape = saved['network'], saved['image_shape']
  _check_same(
    folder,
    {
      'network.name': (network['name'], config.network.name),
      'network.width': (network['width'], config.network.width),
      'the image shape': (shape, list(config.image_shape)),
    },
  )


def _check_data(
  workdir: pathlib.Path,
  model: saved_model.SavedModel,
  config: RunConfig,
  contents: Contents,
) -> None:
  """Of a warm-up, which the search goes on with on the same images."""
  ours, theirs = Preprocessing.of(config.data), model.preprocessing
  path = workdir / 'config.json'
  try:
    of_run = json_files.read_json(path)['config']['data']
    validation = of_run['validation']
  except (LookupError, TypeError) as error:
    raise errors.UserError(
      f"'{path}' is not a valid config.json, from which init_from reads"
      ' data.validation; restore it from a copy'
    ) from error
  _check_same(
    workdir,
    {
      'data.mean': (theirs.mean, ours.mean),
      'data.std': (theirs.std, ours.std),
      'data.validation': (validation, config.data.validation),
    },
  )
  before = data_file.read(workdir)
  difference = before.first_difference(contents)
  if difference:
    raise errors.UserError(
      f"init_from is '{workdir}', which was trained on other data than"
      f" '{config.data.title}' is now: {difference}"
    )


def _check_same(
  folder: pathlib.Path,
  values: Mapping[str, tuple[Any, Any]],
  key: str = 'init_from',
) -> None:
  differing = [
    f'{name} (there: {theirs}, here: {ours})'
    for name, (theirs, ours) in values.items()
    if theirs != ours
  ]
  if differing:
    raise errors.UserError(
      f"{key} is '{folder}', which differs: {'; '.join(differing)}; make"
      f' them equal, or go without {key}'
    )
