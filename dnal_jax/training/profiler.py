"""Where the time of a train step goes: a trace for XProf or TensorBoard, and a
table of the ten most expensive operations."""

from collections import Counter
from collections.abc import Callable
import pathlib
import re
from typing import Any

import jax

from dnal_jax.training.hooks import Hook
from dnal_jax.training.stages import Stage

_LARGEST = 10
# Steps that run untraced first, at most: they compile, and touch memory for the
# first time.
_UNTRACED = 8
# Operations that contain others.
_CONTAINERS = re.compile(r'(while|call|conditional)[.\d]*')
# Parts of an operation's name that JAX's transformations add to the path of a
# module.
_WRAPPING = re.compile(r'\w*\((.*)\)')


class Profiler(Hook):
  """Traces steps of the first epoch of every stage into `directory`/STAGE: as
  many as asked for, or as the epoch has after the first few."""

  def __init__(self, directory: pathlib.Path, steps: int):
    self._directory, self._steps = directory, steps
    self._stage = ''
    self._chunks: Counter[str] = Counter()  # begun, of each stage
    self._traced = 0  # steps of the trace under way; 0 without one

  def begin_stage(self, index: int, stage: Stage, steps_done: int) -> None:
    del index, steps_done
    self._stage = stage.name

  def before_chunk(self, steps: int) -> int:
    self._chunks[self._stage] += 1
    if self._chunks[self._stage] == 1:
      return max(1, min(_UNTRACED, steps - self._steps))
    if self._chunks[self._stage] == 2:
      jax.profiler.start_trace(str(self._directory / self._stage))
      self._traced = min(self._steps, steps)
      return self._traced
    return steps

  def after_chunk(self, program: Callable[[], str]) -> None:
    traced = self._end_trace()
    if traced:
      directory = self._directory / self._stage
      print(_table(self._stage, directory, traced, program()))

  def end_stage(self) -> None:
    self._end_trace()  # if the chunk has failed

  def _end_trace(self) -> int:
    """Steps of the trace that was under way."""
    traced, self._traced = self._traced, 0
    if traced:
      jax.profiler.stop_trace()
    return traced


def _table(stage: str, directory: pathlib.Path, steps: int, text: str) -> str:
  costs = _costs(directory)
  if not costs:
    return f'{stage}: the trace in {directory} has no operations in it'
  total = sum(costs.values())
  origins = _origins(text)
  lines = [
    f'{stage}: {steps} steps traced to {directory}; time of all operations'
    f' {total / steps:.2f} ms a step, of which'
  ]
  for name, milliseconds in costs.most_common(_LARGEST):
    lines.append(
      f'{milliseconds / steps:10.2f} ms {milliseconds / total:6.1%}'
      f'  {origins.get(name, "?")} ({name})'
    )
  return '\n'.join(lines)


def _costs(directory: pathlib.Path) -> Counter[str]:
  """{operation: ms} of the newest trace below `directory`."""
  costs: Counter[str] = Counter()
  files = sorted(
    directory.rglob('*.xplane.pb'), key=lambda file: file.stat().st_mtime_ns
  )
  if not files:
    return costs
  for plane in jax.profiler.ProfileData.from_file(str(files[-1])).planes:
    for line in plane.lines:
      for event in line.events:
        name = _operation(line.name, event)
        if name and not _CONTAINERS.fullmatch(name):
          costs[name] += event.duration_ns / 1e6
  return costs


def _operation(line: str, event: Any) -> str | None:
  """The operation of the compiled program that an event is about."""
  for key, value in event.stats:
    if key == 'hlo_op':
      return value
  if line == 'XLA Ops':  # on TPU: '%name = ...'
    return event.name.split(' ')[0].lstrip('%')
  return None


def _origins(text: str) -> dict[str, str]:
  """{operation: where in the network it comes from} of a compiled program."""
  found = re.findall(r'%([\w.\-]+) = .*?op_name="([^"]*)"', text)
  return {name: _origin(path) for name, path in found}


def _origin(path: str) -> str:
  """'conv1_1/bn/mul, backward' of a name such as
  'jit(steps)/while/body/transpose(jvp(Vgg))/conv1_1/bn/mul'."""
  backward = 'transpose(' in path
  parts = path.split('/')
  networks = [i for i, part in enumerate(parts) if 'jvp(' in part]
  if not networks:
    return parts[-1]
  inside = [
    part
    for part in parts[networks[0] + 1 :]
    if not _WRAPPING.fullmatch(part) and not part.startswith(('cond', 'branch'))
  ]
  return '/'.join(inside) + (', backward' if backward else '')
