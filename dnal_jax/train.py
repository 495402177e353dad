"""A run, read top to bottom: stages of epochs, the cut, the figures.

The position says where a run stands; it is saved with every checkpoint, and a
run goes on from the newest one as if nothing had happened.
"""

from collections.abc import Callable, Mapping
import dataclasses
from functools import partial
import pathlib
import time
from typing import Any

import jax
import jax.numpy as jnp
import tqdm

from dnal_jax import (
  checkpoint,
  compact,
  errors,
  folder,
  gating,
  layers,
  report,
  step,
)
from dnal_jax.data import batches, memory
from dnal_jax.settings import Settings

# Largest difference between hard-gated and cut logits, relative to the
# largest logit, that rounding explains (float32; seen: below 1e-5).
_CUT_TOLERANCE = 1e-4


@dataclasses.dataclass
class Position:
  """Where a run stands, and the figures so far. JSON on disk."""

  stage: int = 0
  epoch: int = 0  # of that stage, done
  keep: dict[str, layers.Ids] = dataclasses.field(default_factory=dict)
  gates_kept: int | None = None
  stages: list[dict[str, Any]] = dataclasses.field(default_factory=list)
  top1: dict[str, float | None] = dataclasses.field(
    default_factory=lambda: dict.fromkeys(
      ('warmup', 'gated', 'pruned', 'compact', 'final')
    )
  )
  compact_max_abs_diff: float | None = None

  @classmethod
  def from_json(cls, value: dict[str, Any]) -> 'Position':
    keep = {gate: tuple(ids) for gate, ids in value['keep'].items()}
    return cls(**{**value, 'keep': keep})


def run(
  settings: Settings, config: Mapping[str, Any], workdir: pathlib.Path
) -> dict[str, Any]:
  """Runs, or goes on with, the run that `workdir` holds; returns its result.

  Raises:
    UserError: the folder belongs to another config, the data cannot be read,
      or the search has left no path through the network.
  """
  folder.check(workdir, config)
  if (workdir / 'result.json').exists():
    print(f"'{workdir}' is finished; nothing to do. Its result:\n")
    return folder.read_json(workdir / 'result.json')
  splits = _load(settings)  # before anything is written
  folder.claim(workdir, config)
  return _Run(settings, workdir, splits).to_the_end()


def _load(settings: Settings) -> memory.Splits:
  data = settings.data
  splits = memory.load(
    data.name,
    image=data.image,
    channels=len(data.mean),
    classes=data.classes,
    validation=data.validation,
    directory=data.dir,
    train_limit=data.train_limit,
  )
  images = len(splits.train.labels)
  if settings.batch_size > images:
    raise errors.UserError(
      f'batch_size is {settings.batch_size}, but there are {images} images'
      ' to train on; make it smaller'
    )
  return splits


class _Run:
  """One process's share of a run: data, network, state, position."""

  def __init__(
    self, settings: Settings, workdir: pathlib.Path, splits: memory.Splits
  ):
    self.settings = settings
    self.workdir = workdir
    data = settings.data
    self.train = jax.device_put(splits.train)
    self.validation = jax.device_put(splits.validation)
    self.test = splits.test
    self.presentation = batches.Presentation(
      data.mean, data.std, data.crop_pad, data.flip
    )
    self.steps_per_epoch = len(splits.train.labels) // settings.batch_size
    self.full = settings.build()
    self.checkpoints = checkpoint.Checkpoints(workdir / 'checkpoints')
    self._resume_or_start()
    self.metrics = report.Metrics(
      workdir, self._epochs_done(), settings.tensorboard
    )

  def to_the_end(self) -> dict[str, Any]:
    """All stages that are left, then the result."""
    stages = self.settings.stages
    try:
      while True:
        stage = stages[self.position.stage]
        train = self._train_function()
        while self.position.epoch < stage.epochs:
          self._epoch(train)
          self._save()
        if self.position.stage + 1 == len(stages):
          return self._finish()
        self._enter(self.position.stage + 1)
    finally:
      self.checkpoints.close()

  # Where the run stands.

  def _resume_or_start(self) -> None:
    latest = self.checkpoints.latest()
    if latest is None:
      self.position = Position()
      self._set_network({})
      init = jax.jit(self.full.init)
      image = jnp.zeros((1, *self.settings.image_shape))
      variables = init(jax.random.key(self.settings.seed), image)
      logits = jax.tree.map(jnp.zeros_like, variables['gates'])
      self._begin(variables['params'], logits, variables['batch_stats'])
      return
    number, position = latest
    self.position = Position.from_json(position)
    self._set_network(self.position.keep)
    like = jax.eval_shape(
      lambda v: self._initial_state(v['params'], v['gates'], v['batch_stats']),
      self.walk.shapes,
    )
    self.state = self.checkpoints.restore(number, like)
    stage = self.settings.stages[self.position.stage].name
    print(f"going on with '{stage}' after epoch {self.position.epoch}")

  def _set_network(self, keep: layers.Keep) -> None:
    self.net = compact.with_keep(self.full, keep)
    self.walk = compact.walk(self.net, self.settings.image_shape)
    self.evaluate = self._eval_function(self.net)

  def _initial_state(self, params, logits, batch_stats) -> step.State:
    stage = self.settings.stages[self.position.stage]
    return step.begin(stage, params, logits, batch_stats, self.steps_per_epoch)

  def _begin(self, params, logits, batch_stats) -> None:
    """A new state for the stage of `position`, and its entry in the result."""
    stage = self.settings.stages[self.position.stage]
    self.state = self._initial_state(params, logits, batch_stats)
    self.position.stages.append(
      {
        'name': stage.name,
        'epochs': stage.epochs,
        'steps': stage.epochs * self.steps_per_epoch,
        'seconds': 0.0,
        'train_loss': None,
      }
    )

  def _enter(self, index: int) -> None:
    """The next stage: cut if it says so, new momenta, step 0."""
    before = self.settings.stages[self.position.stage]
    stage = self.settings.stages[index]
    state = self.state
    parts = state.params, state.logits, state.batch_stats
    self.position.stage, self.position.epoch = index, 0
    if stage.prune_below is not None:
      delta_end = self._delta_end(index)
      parts = self._prune(delta_end, stage.prune_below, before.penalty)
    self._begin(*parts)
    self._save()

  def _delta_end(self, index: int) -> float:
    """Of the last stage before `index` that searched."""
    searched = [
      stage.delta_end
      for stage in self.settings.stages[:index]
      if stage.delta_end is not None
    ]
    return searched[-1]

  def _epochs_done(self) -> int:
    before = self.settings.stages[: self.position.stage]
    return sum(stage.epochs for stage in before) + self.position.epoch

  def _save(self) -> None:
    # A stage's entry and each of its epochs have a number of their own.
    number = self._epochs_done() + self.position.stage
    self.checkpoints.save(number, self.state, dataclasses.asdict(self.position))

  # Training and evaluation.

  def _train_function(self) -> Callable[..., Any]:
    stage = self.settings.stages[self.position.stage]
    first = self._epochs_done() - self.position.epoch
    first_step = first * self.steps_per_epoch

    def train(state, images, labels, order):
      batch = batches.train_batch(
        images,
        labels,
        order,
        first_step + state.step,
        state.step % self.steps_per_epoch,
        seed=self.settings.seed,
        batch_size=self.settings.batch_size,
        presentation=self.presentation,
      )
      return step.train_step(
        state,
        batch,
        net=self.net,
        stage=stage,
        steps_per_epoch=self.steps_per_epoch,
      )

    return jax.jit(train, donate_argnums=0)

  def _epoch(self, train: Callable[..., Any]) -> None:
    stage = self.settings.stages[self.position.stage]
    started = time.perf_counter()
    title = f'{stage.name} {self.position.epoch + 1}/{stage.epochs}'
    batch_size = self.settings.batch_size
    gates = partial(self._gates, epoch=self.position.epoch)
    order = _epoch_order(
      self.settings.seed, self._epochs_done(), len(self.train.labels)
    )
    bar = report.EpochBar(title, self.steps_per_epoch, batch_size)
    sums = []
    for _ in range(self.steps_per_epoch):
      self.state, metrics = train(self.state, *self.train, order)
      sums.append(metrics)
      bar.step(lambda m=metrics: self._postfix(m, gates()))
    total = {k: float(sum(m[k] for m in jax.device_get(sums))) for k in sums[0]}
    bar.close()
    seconds = time.perf_counter() - started
    images = self.steps_per_epoch * batch_size
    validation = self.evaluate(self._variables(gates()), self.validation)
    self.position.epoch += 1
    record = self.position.stages[-1]
    record['train_loss'] = total['loss'] / images
    record['seconds'] += time.perf_counter() - started
    if stage.delta_end is not None:
      self.position.top1['gated'] = validation['top1']
    elif not self.position.keep:
      self.position.top1['warmup'] = validation['top1']
    row = {
      'stage': stage.name,
      'epoch': self.position.epoch,
      'epochs': stage.epochs,
      'epochs_done': self._epochs_done(),
      'step': self._epochs_done() * self.steps_per_epoch,
      'loss': total['loss'] / images,
      'train_top1': total['correct'] / images,
      'penalty': total['penalty'] / self.steps_per_epoch,
      'validation_loss': validation['loss'],
      'validation_top1': validation['top1'],
      'images_per_second': images / seconds,
      'gates': _census(gates()) if stage.delta_end is not None else None,
    }
    self.metrics.write(row, gating.by_path(gates()))
    tqdm.tqdm.write(report.epoch_line(row))

  def _postfix(self, metrics, gates) -> dict[str, Any]:
    stage = self.settings.stages[self.position.stage]
    shown: dict[str, Any] = {
      'loss': f'{metrics["loss"] / self.settings.batch_size:.3f}',
      'accuracy': f'{metrics["correct"] / self.settings.batch_size:.1%}',
    }
    if stage.delta_end is not None:
      shown['gates'] = '/'.join(str(n) for n in _census(gates).values())
    return shown

  def _gates(self, epoch: int):
    stage = self.settings.stages[self.position.stage]
    return stage.gates(self.state.logits, epoch)

  def _variables(self, gates) -> dict[str, Any]:
    return {
      'params': self.state.params,
      'batch_stats': self.state.batch_stats,
      'gates': gates,
    }

  def _eval_function(self, net) -> Callable[..., dict[str, float]]:
    size = self.settings.eval_batch_size

    @jax.jit
    def one(variables, images, labels, start):
      batch = batches.eval_batch(
        images,
        labels,
        start,
        batch_size=size,
        presentation=self.presentation,
      )
      return step.eval_step(variables, batch, net=net)[0]

    def evaluate(variables, split) -> dict[str, float]:
      starts = range(0, len(split.labels), size)
      sums = jax.device_get([one(variables, *split, s) for s in starts])
      total = {k: sum(float(s[k]) for s in sums) for k in sums[0]}
      images = total.pop('images')
      return {k: value / images for k, value in total.items()}

    return evaluate

  # The cut and the end.

  def _prune(
    self, delta_end: float, threshold: float, penalty: float
  ) -> tuple[Any, Any, Any]:
    """Cuts the network to its open gates; proves it is the same function."""
    gates = gating.hard(self.state.logits, delta_end, threshold)
    known = compact.walk(self.full, self.settings.image_shape).gates
    keep = dict(gating.keep(gates, self.walk.gates, known))
    self.position.gates_kept = sum(len(ids) for ids in keep.values())
    self._write_architecture(keep)
    net, walk, evaluate = self.net, self.walk, self.evaluate
    variables = self._variables(gates)
    self._set_network(keep)
    if self.walk.cut_off_by:
      raise errors.UserError(
        f'the search closed every channel of {", ".join(self.walk.cut_off_by)},'
        ' which nothing bypasses, so no image reaches the classifier. Search'
        f' in a new --workdir with a smaller penalty than {penalty:g}, say'
        f' {penalty / 3:.2g}; the search result is kept in'
        f" '{self.workdir / 'checkpoints'}' and architecture.json"
      )
    small = jax.device_put(compact.cut(variables, walk, self.walk))
    top1 = self.position.top1
    top1['pruned'] = evaluate(variables, self.validation)['top1']
    top1['compact'] = self.evaluate(small, self.validation)['top1']
    self._compare(net, variables, small)
    self.position.keep = keep
    tqdm.tqdm.write(
      f'cut to {self.position.gates_kept} of'
      f' {sum(map(len, known.values()))} gated channels: validation'
      f' {top1["pruned"]:.2%} gated, {top1["compact"]:.2%} cut'
    )
    logits = jax.tree.map(jnp.zeros_like, small.get('gates', {}))
    return small['params'], logits, small['batch_stats']

  def _compare(self, net, variables, small) -> None:
    """Logits of the hard-gated and the cut network on the validation split.

    Raises:
      RuntimeError: they differ by more than rounding does.
    """
    size, count = self.settings.eval_batch_size, len(self.validation.labels)

    @jax.jit
    def logits(variables, small, images):
      x = self.presentation.normalise(images)
      return net.apply(variables, x), self.net.apply(small, x)

    worst, largest = 0.0, 0.0
    for start in range(0, count, size):
      images = self.validation.images[start : start + size]
      a, b = logits(variables, small, images)
      worst = max(worst, float(abs(a - b).max()))
      largest = max(largest, float(abs(a).max()))
    self.position.compact_max_abs_diff = worst
    if not worst <= _CUT_TOLERANCE * largest:
      images = self.presentation.normalise(self.validation.images[:size])
      gate = compact.first_difference(
        net, variables, self.net, small, images, _CUT_TOLERANCE
      )
      raise RuntimeError(
        f'the cut network differs from the hard-gated one by {worst} (logits'
        f' up to {largest}), first behind gate {gate}; nothing was cut'
      )

  def _write_architecture(self, keep: layers.Keep) -> None:
    settings = self.settings
    folder.write_architecture(
      self.workdir,
      settings.network.name,
      settings.network.width,
      settings.data.classes,
      settings.image_shape,
      keep,
    )

  def _finish(self) -> dict[str, Any]:
    """The last evaluation, the only one on test; the model and the result."""
    stage = self.settings.stages[self.position.stage]
    variables = self._variables(self._gates(max(stage.epochs - 1, 0)))
    final = self.evaluate(variables, self.validation)
    test = self.evaluate(variables, jax.device_put(self.test))
    shape, gates = self.settings.image_shape, self.walk.gates
    whole = compact.walk(self.full, shape).gates
    pruned = self.position.gates_kept is not None
    if not pruned:
      self._write_architecture(whole)
    folder.write_model(self.workdir, jax.device_get(variables))
    result = {
      'network': self.settings.network.name,
      'dataset': self.settings.data.name,
      'seed': self.settings.seed,
      'stages': self.position.stages,
      'baseline': dataclasses.asdict(compact.count(self.full, shape)),
      'learned': (
        dataclasses.asdict(compact.count(self.net, shape)) if pruned else None
      ),
      'gates': {
        'total': sum(map(len, whole.values())),
        'kept': sum(map(len, gates.values())),
      },
      'top1': {**self.position.top1, 'final': final['top1']},
      'top5': {'final': final['top5']},
      'compact_max_abs_diff': self.position.compact_max_abs_diff,
      'test_top1': test['top1'],
      'test_top5': test['top5'],
    }
    folder.write_json(self.workdir / 'result.json', result)
    return result


_epoch_order = jax.jit(batches.epoch_order, static_argnums=(0, 2))


def _census(gates) -> dict[str, int]:
  names = ('low', 'undecided', 'high')
  return dict(zip(names, map(int, gating.census(gates)), strict=True))
