"""The runs of a comparison: which there are, in which folders, one at a time.

DIR/METHOD/TARGET/SEED is an ordinary run; beside them there are DIR/warmup/SEED
and DIR/full/SEED, and DIR/dnal_penalty/TARGET with the short runs that lambda
is chosen by. Several processes may work on one DIR: each takes a run that no
other one holds.
"""

from collections.abc import Iterator, Sequence
import json
import math
import pathlib
from typing import Any, NamedTuple

import jax

from dnal_jax import errors, train
from dnal_jax.compare import methods
from dnal_jax.compare.methods import WARMUP, Config, Problem
from dnal_jax.config import parse_config
from dnal_jax.search.budget import limit_of
from dnal_jax.training.progress_bar import show
from dnal_jax.workdir import json_files

FULL = 'full'
# Of lambda: short runs at most, and the log of macs over their target at which
# no other is tried.
TRIALS, NEAR = 8, 0.1
_APART = 4.0  # factor between lambdas until they bracket the target


class Cell(NamedTuple):
  """One run of the table."""

  method: str  # or FULL
  target: tuple[str, float] | None  # ('macs', 0.25); None: the full network
  seed: int

  @property
  def folder(self) -> str:
    """Of its run, in that of the comparison."""
    target = f'{target_name(self.target)}/' if self.target else ''
    return f'{self.method}/{target}{self.seed}'


def target_name(target: tuple[str, float]) -> str:
  """Such as 'macs_0.25'."""
  return f'{target[0]}_{target[1]:g}'


class Comparison(NamedTuple):
  """What is compared, and where."""

  problem: Problem
  workdir: pathlib.Path
  names: Sequence[str]  # of methods
  targets: Sequence[tuple[str, float]]
  seeds: int

  def cells(self) -> Iterator[Cell]:
    """All of them, seed by seed, so that a table of some seeds is whole."""
    for seed in range(self.seeds):
      yield Cell(FULL, None, seed)
      for target in self.targets:
        for name in self.names:
          yield Cell(name, target, seed)

  def path(self, cell: Cell) -> pathlib.Path:
    return self.workdir / cell.folder

  def is_done(self, cell: Cell) -> bool:
    return (self.path(cell) / 'result.json').exists()

  def run(self, cell: Cell) -> bool:
    """Runs a cell, or what has to be there before it. False if another process
    holds its folder, or that of what it waits for."""
    try:
      self._run(cell)
    except errors.InUse:
      return False
    return True

  def _run(self, cell: Cell) -> None:
    seed, target = cell.seed, cell.target
    if target is None:
      return self._train(cell, methods.full(self.problem))
    method = methods.METHODS[cell.method]
    penalty = self._penalty(target) if method.tuned else None
    config = method.make(self.problem, dict([target]), penalty)
    if method.begins_with == WARMUP:
      config['init_from'] = str(self._warmup(seed))
    elif method.begins_with is not None:
      before = Cell(method.begins_with, target, seed)
      if not self.is_done(before):
        self._run(before)
      config['init_from'] = str(self.path(before))
    return self._train(cell, config)

  def _train(self, cell: Cell, config: Config) -> None:
    show(f'\n== {cell.folder}')
    _run(config, cell.seed, self.path(cell))

  def _warmup(self, seed: int) -> pathlib.Path:
    """The folder of the warm-up that runs of a seed share."""
    workdir = self.workdir / WARMUP / str(seed)
    if not (workdir / 'result.json').exists():
      show(f'\n== {WARMUP}/{seed}')
      _run(self.problem.warmed_up(), seed, workdir)
    return workdir

  def _penalty(self, target: tuple[str, float]) -> float:
    """Lambda: that of the search, from the warm-up of seed 0, which comes
    nearest to the target without a ranking. Bisection of its logarithm."""
    folder = self.workdir / 'dnal_penalty' / target_name(target)
    path = folder / 'trials.json'
    trials = json_files.read_json(path) if path.exists() else []
    while len(trials) < TRIALS and not any(abs(e) <= NEAR for _, e in trials):
      penalty = next_penalty(trials, self.problem.paper['penalty'])
      show(f'\n== lambda {penalty:.3g} for {target_name(target)}')
      workdir = folder / f'{penalty:.6g}'
      error = self._excess(penalty, target, workdir)
      trials = [*trials, [penalty, error]]
      json_files.write_json(path, trials)
    return min(trials, key=lambda trial: abs(trial[1]))[0]

  def _excess(
    self, penalty: float, target: tuple[str, float], workdir: pathlib.Path
  ) -> float:
    """log(cost / target) of what a search with this lambda keeps; -9 if the
    search closes a layer."""
    make = methods.METHODS[methods.PAPER].make
    config = make(self.problem, {}, penalty)
    config['stages']['finetune']['epochs'] = 0
    config['init_from'] = str(self._warmup(0))
    kind, share = target
    try:
      result = _run(config, 0, workdir)
    except errors.SearchFailed as error:
      show(str(error))
      return -9.0
    full, learned = result['baseline'][kind], result['learned'][kind]
    limit = limit_of(share, full)
    return math.log(max(learned, 1) / limit)


def next_penalty(trials: Sequence[Sequence[float]], first: float) -> float:
  """The lambda to try after [lambda, log(cost / target)] of those before."""
  if not trials:
    return first
  small = [p for p, error in trials if error > 0]  # which keep too much
  large = [p for p, error in trials if error <= 0]
  if small and large:
    return math.sqrt(max(small) * min(large))
  return max(small) * _APART if small else min(large) / _APART


def _run(config: Config, seed: int, workdir: pathlib.Path) -> dict[str, Any]:
  """The result of an ordinary run, which may have been under way."""
  config = json.loads(json.dumps({**config, 'seed': seed}))
  result = train.run(parse_config(config), config, workdir)
  jax.clear_caches()  # hundreds of programs, of which none comes again
  return result
