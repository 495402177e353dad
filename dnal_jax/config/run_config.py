"""Turns a config into frozen dataclasses, once, and refuses what is unknown.

No code behind this module sees a ConfigDict. In a config, `stages` holds every
stage by name, and `order` lists the names of those that run.
"""

from collections.abc import Iterable, Mapping
import dataclasses
import math
import types
import typing
from typing import Annotated, Any, Literal

from dnal_jax import data, errors, limits, models, trees
from dnal_jax.config.keys import RENAMED_KEYS
from dnal_jax.data import splits
from dnal_jax.graph import walk
from dnal_jax.limits import Range
from dnal_jax.training import stages
from dnal_jax.training.optimizer import assign_groups

# Keys at the top of a config that stages refer to: one flag sets all of them.
_SHARED = (
  *('penalty', 'target', 'distill', 'label_smoothing', 'ema', 'nesterov'),
)


@dataclasses.dataclass(frozen=True)
class NetworkConfig:
  """A name that `models.get` knows, and the width multiplier."""

  name: str
  width: Annotated[float, Range(above=0, max=limits.WIDTH)] = 1.0

  def __post_init__(self):
    limits.check(self)


@dataclasses.dataclass(frozen=True)
class RunConfig:
  """Everything a run depends on."""

  network: NetworkConfig
  data: data.Data
  batch_size: Annotated[int, Range(min=1)]
  eval_batch_size: Annotated[int, Range(min=1)]
  seed: Annotated[int, Range(min=0, below=2**32)]
  stages: tuple[stages.Stage, ...]
  tensorboard: bool = True  # write events for TensorBoard if clu is installed
  compute_dtype: Literal['float32', 'bfloat16'] = 'float32'  # in training
  # Parts of a batch that are processed one after the other, to save memory.
  grad_accum_steps: Annotated[int, Range(min=1)] = 1
  # Steps between checkpoints, besides the one after each epoch.
  checkpoint_steps: Annotated[int | None, Range(min=1)] = None
  # How often a run may go back to its last checkpoint and halve the learning
  # rates, instead of stopping, when a loss or a gradient is not finite.
  max_nan_restarts: Annotated[int, Range(min=0)] = 0
  profile: Annotated[int | None, Range(min=1)] = None  # steps traced per stage
  # The folder of a run whose network this one begins with: that after its
  # warm-up, where this run's first search or pruning goes on; at its end, where
  # the stages behind the last of them do; or its channels alone, with new
  # weights.
  init_from: str | None = None
  init_at: Literal['warmup', 'end', 'architecture'] = 'warmup'

  def __post_init__(self):
    limits.check(self)
    if self.batch_size % self.grad_accum_steps:
      raise ValueError(
        f'batch_size is {self.batch_size}, which grad_accum_steps,'
        f' {self.grad_accum_steps}, does not divide; make it a multiple'
      )

  @property
  def image_shape(self) -> tuple[int, int, int]:
    """(height, width, channels) of the network's input."""
    return self.data.image, self.data.image, len(self.data.mean)

  @property
  def classes(self) -> int:
    """Outputs of the network; `parse_config` has filled them in."""
    assert self.data.classes is not None
    return self.data.classes

  @property
  def first_stage(self) -> int:
    """The number of the stage with which the run begins: not 0 if `init_from`
    has done those before it."""
    if self.init_from is None or self.init_at == 'architecture':
      return 0
    if self.init_at == 'warmup':
      return stages.after_warmup(self.stages)
    begins = [0]
    for index, stage in enumerate(self.stages):
      begins += [index + 1] * stage.searches + [index] * stage.prunes
    return max(begins)

  def top1_key(self, index: int) -> str | None:
    """The key of `top1` in the result that stage number `index` sets: 'gated'
    if it searches, 'warmup' if a search or a pruning comes after it, and none
    before."""
    if self.stages[index].searches:
      return 'gated'
    begins = stages.after_warmup(self.stages)
    return 'warmup' if index < begins < len(self.stages) else None

  def build(self) -> models.Network:
    """The full network."""
    variant = models.get(self.network.name)
    return variant.build(classes=self.classes, width=self.network.width)


def parse_config(config: Mapping[str, Any]) -> RunConfig:
  """The run that a config, as nested dicts, describes.

  Raises:
    UserError: a key is unknown or missing, or a value makes no sense.
  """
  values = dict(config)
  fields = {field.name for field in dataclasses.fields(RunConfig)}
  _refuse_unknown(values, fields | {'order', 'epochs_scale', *_SHARED}, '')
  for key in _SHARED:
    values.pop(key, None)
  by_name, order = values.pop('stages', {}), values.pop('order', ())
  scale = _build(float, values.pop('epochs_scale', 1.0), 'epochs_scale')
  if scale <= 0:
    raise errors.UserError(f'epochs_scale is {scale:g}; it must be above 0')
  _check_order(order, by_name)
  # Stages that do not run are parsed as well: a typo in one is found at once.
  parsed = {}
  for name, value in by_name.items():
    named = {'name': name, **value} if isinstance(value, Mapping) else value
    parsed[name] = _build(stages.Stage, named, f'stages.{name}.').resized(scale)
  run = _build(
    RunConfig, {**values, 'stages': tuple(parsed[name] for name in order)}, ''
  )
  if run.data.classes is None:
    classes = splits.classes(run.data)
    images = _build(data.Data, {**vars(run.data), 'classes': classes}, 'data.')
    run = dataclasses.replace(run, data=images)
  _check_run(run)
  return run


def _check_order(order: Any, by_name: Any) -> None:
  if not isinstance(by_name, Mapping):
    raise errors.UserError(f'stages is {by_name!r}; it must be {{name: stage}}')
  if not isinstance(order, list | tuple) or not all(
    isinstance(name, str) for name in order
  ):
    raise errors.UserError(
      f"order is {order!r}; it must list stages: ('warmup', 'search')"
    )
  for name in order:
    if name not in by_name:
      hint = errors.did_you_mean(name, by_name)
      if ',' in name:  # as of a flag, which is a tuple of one text
        names = tuple(part.strip() for part in name.split(','))
        hint = f'; several are a tuple: --config.order="{names}"'
      raise errors.UserError(f"order names an unknown stage '{name}'{hint}")
  if not order:
    raise errors.UserError("order is empty; name at least one of 'stages'")
  if len(set(order)) < len(order):
    raise errors.UserError(
      f'order is {order!r}, which names a stage twice; copy the stage under'
      ' another name'
    )


def _check_run(run: RunConfig) -> None:
  """Checks the parts of a run against each other."""
  stages.validate(run.stages)
  if run.init_from is not None:
    nowhere = stages.after_warmup(run.stages) == len(run.stages)
    if run.init_at == 'warmup' and nowhere:
      raise errors.UserError(
        "init_from has a warm-up, but no stage of 'order' searches; set"
        " init_at to 'end' to begin with the final network, or add a search"
      )
    if run.first_stage == len(run.stages):
      raise errors.UserError(
        "init_at is 'end', but 'order' ends with a search; add the stage that"
        ' is to train the network'
      )
  net, images = run.build(), run.data
  streamed = data.is_streamed(images.name, images.folder)
  if streamed and images.short_side < images.image:
    raise errors.UserError(
      f'data.short_side is {images.short_side}, less than data.image,'
      f' {images.image}, which evaluation cuts out of it; raise it'
    )
  if images.image < net.min_image:
    raise errors.UserError(
      f'data.image is {images.image}, too small for network'
      f" '{run.network.name}', which halves the image down to one pixel at"
      f' {net.min_image}; set data.image to {net.min_image} or more'
    )
  graph = walk.graph_of(net, run.image_shape)
  for index, stage in enumerate(run.stages):
    cut = stages.next_cut(run.stages, index)
    for target, key, multiple in (
      (stage.target, 'target', cut.multiple if cut else 1),
      (stage.prune_to, 'prune_to', stage.channel_multiple),
    ):
      if target:
        name = run.network.name
        target.check_reachable(graph, multiple, name, key)
  shapes = graph.shapes
  paths = list(trees.flatten({k: shapes[k] for k in ('params', 'gates')}))
  for stage in run.stages:
    try:
      _check_groups(stage, paths)
    except errors.UserError as error:
      raise errors.UserError(f"stage '{stage.name}': {error}") from None


def _check_groups(stage: stages.Stage, paths: Iterable[str]) -> None:
  """Finds a typo in a pattern before the stage is reached."""
  trained = assign_groups(stage.train, paths)
  trains_gates = any(path.startswith('gates/') for path in trained)
  if not trained:
    raise errors.UserError('train is empty; name at least one group')
  if trains_gates and not stage.searches:
    raise errors.UserError(
      'train has gates, which are open without delta_end: set delta_end'
    )
  if stage.searches and not trains_gates:
    raise errors.UserError(
      "delta_end is set, but no group matches 'gates/.*': add one"
    )


def _build(kind: Any, value: Any, path: str) -> Any:
  """`value` as the type `kind`; `path` is its key in messages."""
  if dataclasses.is_dataclass(kind):
    if type(value) is kind:  # `parse_config` has built the stages
      return value
    return _build_dataclass(kind, value, path)
  origin, args = typing.get_origin(kind), typing.get_args(kind)
  key = path.rstrip('.')
  if origin is tuple and isinstance(value, list | tuple):
    return tuple(_build(args[0], v, path) for v in value)
  if origin is Mapping and isinstance(value, Mapping):
    return {k: _build(args[1], v, f'{path}{k}.') for k, v in value.items()}
  if origin is typing.Literal:
    if value not in args:
      hint = errors.did_you_mean(str(value), map(str, args))
      raise errors.UserError(f"{key} is '{value}'{hint}")
    return value
  if origin in (types.UnionType, typing.Union):
    if value is None:
      return None
    return _build(next(a for a in args if a is not types.NoneType), value, path)
  if kind is float and isinstance(value, int) and not isinstance(value, bool):
    value = float(value)
  if isinstance(value, float) and not math.isfinite(value):
    raise errors.UserError(f'{key} is {value}; it must be a finite number')
  if not isinstance(value, origin or kind) or (
    kind is int and isinstance(value, bool)
  ):
    raise errors.UserError(
      f'{key} is {value!r}; it must be of type'
      f' {kind if origin else kind.__name__}'
    )
  return value


def _build_dataclass(kind: Any, value: Any, path: str) -> Any:
  if not isinstance(value, Mapping):
    raise errors.UserError(
      f'{path.rstrip(".")} is {value!r}; it must have the keys'
      f' {", ".join(f.name for f in dataclasses.fields(kind))}'
    )
  hints = typing.get_type_hints(kind)  # without `Annotated`
  _refuse_unknown(value, hints, path)
  missing = [
    f.name
    for f in dataclasses.fields(kind)
    if f.default is f.default_factory is dataclasses.MISSING
    and f.name not in value
  ]
  if missing:
    raise errors.UserError(f"the config lacks the key '{path}{missing[0]}'")
  fields = {k: _build(hints[k], v, f'{path}{k}.') for k, v in value.items()}
  try:
    return kind(**fields)
  except ValueError as error:
    raise errors.UserError(f'{path}{error}') from None


def _refuse_unknown(
  value: Mapping[str, Any], known: Iterable[str], path: str
) -> None:
  for key in value:
    if key not in known:
      hint = errors.did_you_mean(RENAMED_KEYS.get(key, key), known)
      raise errors.UserError(f"unknown config key '{path}{key}'{hint}")
