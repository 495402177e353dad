"""From the ConfigDict to frozen dataclasses, once, refusing what is unknown.

Nothing behind this module ever sees a ConfigDict. The config's `stages` holds
every stage by name and `order` the list of those to run.
"""

from collections.abc import Mapping
import dataclasses
import math
import types
import typing
from typing import Any, Literal

from dnal_jax import data, errors, models, trees
from dnal_jax.data import sources, splits
from dnal_jax.graph import walk
from dnal_jax.models import limits
from dnal_jax.training import stages

# Values that stages refer to, so that one flag sets them in all.
_SHARED = ('penalty', 'label_smoothing', 'ema', 'nesterov')

# Keys by the names that they had in earlier versions, wherever they stand.
RENAMED_KEYS = {
  'accumulate': 'grad_accum_steps',
  'rollbacks': 'max_nan_restarts',
  'prune_below': 'gate_threshold',
  'prune_multiple': 'channel_multiple',
}


@dataclasses.dataclass(frozen=True)
class NetworkConfig:
  """A name that `models.get` knows, and the width multiplier."""

  name: str
  width: float = 1.0


@dataclasses.dataclass(frozen=True)
class RunConfig:
  """Everything a run depends on."""

  network: NetworkConfig
  data: data.Data
  batch_size: int
  eval_batch_size: int
  seed: int
  stages: tuple[stages.Stage, ...]
  tensorboard: bool = True  # events for TensorBoard, where clu is installed
  compute_dtype: Literal['float32', 'bfloat16'] = 'float32'  # in training
  grad_accum_steps: int = 1  # parts of a batch that are worked off one by one
  checkpoint_steps: int | None = None  # besides after every epoch
  max_nan_restarts: int = (
    0  # times to go back and halve rates, not to stop, at NaN
  )
  profile: int | None = None  # steps of each stage to trace

  @property
  def image_shape(self) -> tuple[int, int, int]:
    """(height, width, channels) of what the network is given."""
    return self.data.image, self.data.image, len(self.data.mean)

  @property
  def classes(self) -> int:
    """Outputs of the network; `parse` has made sure of them."""
    assert self.data.classes is not None
    return self.data.classes

  def point(self, index: int) -> str | None:
    """The point of accuracy that a stage ends at: 'gated' if it searches,
    'warmup' if it is before the first that does."""
    searches = [stage.delta_end is not None for stage in self.stages]
    if searches[index]:
      return 'gated'
    return (
      'warmup' if any(searches[index:]) and not any(searches[:index]) else None
    )

  def build(self) -> models.Network:
    """The full network."""
    variant = models.get(self.network.name)
    return variant.build(classes=self.classes, width=self.network.width)


def parse_config(config: Mapping[str, Any]) -> RunConfig:
  """The settings that a config (as nested dicts) stands for.

  Raises:
    UserError: a key is unknown or missing, or a value makes no sense.
  """
  values = dict(config)
  known = {f.name for f in dataclasses.fields(RunConfig)} | {'order', *_SHARED}
  _refuse_unknown(values, known, '')
  for key in _SHARED:
    values.pop(key, None)
  by_name, order = values.pop('stages', {}), values.pop('order', ())
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
      raise errors.UserError(f"order names an unknown stage '{name}'{hint}")
  if not order:
    raise errors.UserError("order is empty; name at least one of 'stages'")
  # Stages that are not run are parsed too: a typo should not wait for its run.
  parsed = {}
  for name, value in by_name.items():
    named = {'name': name, **value} if isinstance(value, Mapping) else value
    parsed[name] = _build(stages.Stage, named, f'stages.{name}.')
  settings = _build(
    RunConfig, {**values, 'stages': tuple(parsed[name] for name in order)}, ''
  )
  if settings.data.classes is None:
    classes = splits.classes(settings.data)
    images = dataclasses.replace(settings.data, classes=classes)
    settings = dataclasses.replace(settings, data=images)
  _check(settings)
  return settings


def _check(settings: RunConfig) -> None:
  stages.validate(settings.stages)
  names = [stage.name for stage in settings.stages]
  if len(set(names)) < len(names):
    raise errors.UserError(f'order {names} names a stage twice; copy it')
  net, images = settings.build(), settings.data
  for key, value in (
    ('batch_size', settings.batch_size),
    ('eval_batch_size', settings.eval_batch_size),
    ('data.validation', images.validation),
    ('data.classes', images.classes),
    ('data.train_limit', images.train_limit),
    ('network.width', settings.network.width),
    ('grad_accum_steps', settings.grad_accum_steps),
    ('checkpoint_steps', settings.checkpoint_steps),
    ('profile', settings.profile),
  ):
    if value is not None and value <= 0:
      raise errors.UserError(f'{key} is {value}; it must be positive')
  if settings.max_nan_restarts < 0:
    raise errors.UserError(
      f'max_nan_restarts is {settings.max_nan_restarts}; it must be 0+'
    )
  for key, value, most in (
    ('network.width', settings.network.width, limits.WIDTH),
    ('data.classes', settings.classes, limits.CLASSES),
    ('data.image', images.image, limits.SIDE),
    ('the length of data.mean', len(images.mean), limits.CHANNELS),
  ):
    if value > most:
      raise errors.UserError(f'{key} is {value}; it must be {most} at most')
  if settings.batch_size % settings.grad_accum_steps:
    raise errors.UserError(
      f'batch_size is {settings.batch_size}, which grad_accum_steps,'
      f' {settings.grad_accum_steps}, does not divide; make it a multiple'
    )
  _check_images(images)
  if not 0 <= settings.seed < 2**32:
    raise errors.UserError(f'seed is {settings.seed}; it must fit 32 bits')
  if images.image < net.min_image:
    raise errors.UserError(
      f'data.image is {images.image}: too small for network'
      f" '{settings.network.name}', which halves the image down to one pixel"
      f' at {net.min_image}; set data.image to {net.min_image} or more'
    )
  shapes = walk.graph_of(net, settings.image_shape).shapes
  paths = list(trees.flatten({k: shapes[k] for k in ('params', 'gates')}))
  for stage in settings.stages:
    _check_groups(stage, paths)


def _check_images(images: data.Data) -> None:
  if images.crop_pad < 0:
    raise errors.UserError(f'data.crop_pad is {images.crop_pad}; it must be 0+')
  if len(images.mean) != len(images.std) or min(images.std, default=0) <= 0:
    raise errors.UserError(
      f'data.mean {images.mean} and data.std {images.std} must be of one'
      ' length, one number per channel, and std positive'
    )
  if not sources.streams(images):
    return
  if images.short_side < images.image:
    raise errors.UserError(
      f'data.short_side is {images.short_side}, less than data.image,'
      f' {images.image}, which evaluation cuts out of it; raise it'
    )
  low, high = (*images.crop_scale, 0, 0)[:2]
  if len(images.crop_scale) != 2 or not 0 < low <= high <= 1:
    raise errors.UserError(
      f'data.crop_scale is {images.crop_scale}; it must be two shares of the'
      ' area, the smaller first, such as (0.08, 1.0)'
    )


def _check_groups(stage: stages.Stage, paths: list[str]) -> None:
  """A typo in a pattern should not wait for its stage."""
  trained = stage.groups(paths)
  trains_gates = any(path.startswith('gates/') for path in trained)
  told = None
  if not trained:
    told = 'has an empty train; name at least one group'
  elif trains_gates and stage.delta_end is None:
    told = 'trains gates, which are open without delta_end: set delta_end'
  elif stage.delta_end is not None and not trains_gates:
    told = "has delta_end, but no group that matches 'gates/.*': add one"
  if told:
    raise errors.UserError(f"stage '{stage.name}' {told}")


def _build(kind: Any, value: Any, path: str) -> Any:
  """`value` as the type `kind`; `path` is where it stands, for messages."""
  if dataclasses.is_dataclass(kind):
    if type(value) is kind:  # a stage, built before
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
  hints = typing.get_type_hints(kind)
  _refuse_unknown(value, hints, path)
  missing = [
    f.name
    for f in dataclasses.fields(kind)
    if f.default is dataclasses.MISSING and f.name not in value
  ]
  if missing:
    raise errors.UserError(f"the config lacks the key '{path}{missing[0]}'")
  fields = {k: _build(hints[k], v, f'{path}{k}.') for k, v in value.items()}
  try:
    return kind(**fields)
  except ValueError as error:
    raise errors.UserError(f'{path}{error}') from None


def _refuse_unknown(value, known, path):
  for key in value:
    if key not in known:
      hint = errors.did_you_mean(key, known)
      raise errors.UserError(f"unknown config key '{path}{key}'{hint}")
