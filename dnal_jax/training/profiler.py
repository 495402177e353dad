"""Where the time of a train step goes: a trace for XProf or TensorBoard, and
its ten largest costs for people."""

from collections import Counter
from collections.abc import Callable, Iterator
import contextlib
import pathlib
import re
from typing import Any

import jax

_LARGEST = 10
# Steps that come before, at most: compiling, and the first use of memory.
_FIRST = 8
# Operations that contain others.
_CONTAINERS = re.compile(r'(while|call|conditional)[.\d]*')
# What JAX's transformations wrap around a path of the network.
_WRAPPING = re.compile(r'\w*\((.*)\)')


class Profiler:
  """Traces some steps of every stage of a run, into `directory`/STAGE: as many
  as asked for, or as its first epoch has left behind the first step."""

  def __init__(self, directory: pathlib.Path, steps: int | None):
    self._directory, self._steps = directory, steps
    self._calls: Counter[str] = Counter()

  @contextlib.contextmanager
  def record(
    self, stage: str, most: int, program: Callable[[], str]
  ) -> Iterator[int]:
    """Gives the number of steps to run inside, `most` unless it is to trace
    fewer. `program` is asked for the text of what was compiled."""
    self._calls[stage] += 1
    if self._steps is None or self._calls[stage] > 2:
      yield most
    elif self._calls[stage] == 1:
      yield max(1, min(_FIRST, most - self._steps))
    else:
      steps = min(self._steps, most)
      directory = self._directory / stage
      with jax.profiler.trace(str(directory)):
        yield steps
      print(_table(stage, directory, steps, program()))


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
  """'jit(steps)/while/body/transpose(jvp(Vgg))/conv1_1/bn/mul', say, becomes
  'conv1_1/bn/mul, backward'."""
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
