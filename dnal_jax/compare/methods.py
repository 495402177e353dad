"""What is compared: a method makes a run's config of the variants of one.

All methods train for as many epochs as warm-up, search and fine-tuning have
together, on the same data, with the same batches, augmentation and optimizer.
Those that begin with a warm-up share it, one for each seed.
"""

from collections.abc import Callable, Mapping
import copy
import dataclasses
from typing import Any

from dnal_jax import errors

Config = dict[str, Any]  # nested dicts, as `parse_config` takes them
Target = Mapping[str, float]  # {'macs': 0.25}: at most so much of each cost

WARMUP = 'warmup'  # what a run begins with that has a warm-up of its own


@dataclasses.dataclass(frozen=True)
class Problem:
  """A config in its variants, each with the user's flags, without a seed."""

  paper: Config
  target: Config
  baseline: Config

  @classmethod
  def create(cls, variants: Mapping[str, Config]) -> 'Problem':
    """From {variant: config}; epochs_scale is multiplied into the epochs.

    Raises:
      UserError: a config does not have the stages of a search.
    """
    of_search = ('warmup', 'search', 'finetune')
    for variant, stages in (
      *(('', of_search), ('target', of_search)),
      ('baseline', ('baseline',)),
    ):
      if tuple(variants[variant]['order']) != stages:
        raise errors.UserError(
          f'order is {tuple(variants[variant]["order"])} in the variant'
          f" '{variant}' of the config; a comparison needs {stages}"
        )
    return cls(*(_rescaled(variants[v]) for v in ('', 'target', 'baseline')))

  def epochs(self, *stages: str) -> int:
    """Of these stages together; of warm-up, search and fine-tuning without."""
    names = stages or ('warmup', 'search', 'finetune')
    return sum(self.paper['stages'][name]['epochs'] for name in names)

  def plain(self) -> Config:
    """A single stage of training, as long as all stages."""
    config = copy.deepcopy(self.baseline)
    config['stages']['baseline']['epochs'] = self.epochs()
    return config

  def ranked(self, by: str, target: Target) -> Config:
    """Pruning at the end of the warm-up, without a search."""
    config = copy.deepcopy(self.paper)
    config['order'] = ('warmup', 'finetune')
    config['stages']['finetune'] |= {
      'epochs': self.epochs('search', 'finetune'),
      'prune_by': by,
      'prune_to': dict(target),
    }
    return config

  def warmed_up(self) -> Config:
    """The warm-up alone."""
    return {**copy.deepcopy(self.paper), 'order': ('warmup',)}


@dataclasses.dataclass(frozen=True)
class Method:
  """A way to a small network, by its name in tables and folders.

  `make(problem, target, penalty)` is the config of its run; `penalty` is
  lambda, for a method that has it `tuned`, else None. `begins_with` is what the
  run begins with: the shared warm-up; the channels that another method has
  found at the same target and seed, by its name; or None, random weights.
  """

  name: str
  text: str  # one line: what it does
  make: Callable[[Problem, Target, float | None], Config]
  begins_with: str | None = WARMUP
  tuned: bool = False


METHODS: dict[str, Method] = {}
_OURS: set[str] = set()


def register(method: Method) -> None:
  """Makes a method known by its name; one of yours takes the place of another,
  as config files are read several times.

  Raises:
    UserError: a method of the library has the name.
  """
  if method.name in _OURS:
    raise errors.UserError(
      f"'{method.name}' is a method of dnal_jax; give yours another name"
    )
  METHODS[method.name] = method


def full(problem: Problem) -> Config:
  """The full network, trained as long."""
  return problem.plain()


def _uniform(problem: Problem, target: Target, penalty: float | None) -> Config:
  config = problem.plain()
  config['stages']['baseline'] |= {
    'prune_by': 'uniform',
    'prune_to': dict(target),
  }
  return config


def _ranked(by: str) -> Callable[[Problem, Target, float | None], Config]:
  return lambda problem, target, penalty: problem.ranked(by, target)


def _paper(problem: Problem, target: Target, penalty: float | None) -> Config:
  config = copy.deepcopy(problem.paper)
  config['penalty'] = config['stages']['search']['penalty'] = penalty
  config['stages']['finetune']['prune_to'] = dict(target)
  return config


def _ours(problem: Problem, target: Target, penalty: float | None) -> Config:
  config = copy.deepcopy(problem.target)
  config['target'] = config['stages']['search']['target'] = dict(target)
  # A flag for lambda, which is for the paper's method, reaches all variants.
  config['penalty'] = config['stages']['search']['penalty'] = None
  return config


def _widths(problem: Problem, target: Target, penalty: float | None) -> Config:
  return {**problem.plain(), 'init_at': 'architecture'}


def _rescaled(config: Config) -> Config:
  config = copy.deepcopy(config)
  scale = config.pop('epochs_scale', 1.0)
  for stage in config['stages'].values():
    if scale != 1 and stage['epochs']:
      stage['epochs'] = max(1, round(stage['epochs'] * scale))
  return {**config, 'epochs_scale': 1.0}


UNIFORM, OURS, PAPER = 'uniform', 'target', 'dnal'
for _method in (
  Method(
    UNIFORM,
    'the same share of channels everywhere, trained from random weights',
    _uniform,
    begins_with=None,
  ),
  Method(
    'uniform-cut',
    'the same share of channels everywhere, cut after the warm-up',
    _ranked('uniform'),
  ),
  Method(
    'uniform-scale-cut',
    'the same share everywhere, channels with the largest BatchNorm scales',
    _ranked('uniform_scale'),
  ),
  Method(
    'scale-cut',
    'the largest BatchNorm scales of all layers (as network slimming ranks,'
    ' without its L1 term)',
    _ranked('scale'),
  ),
  Method(
    'taylor-cut',
    'squared gradients by gates over macs, ranked after the warm-up',
    _ranked('taylor'),
  ),
  Method(
    PAPER,
    "the paper's search, lambda by bisection, then ranked to the same cost",
    _paper,
    tuned=True,
  ),
  Method(OURS, "this library's search under a target", _ours),
  Method(
    'target-scratch',
    "the widths that 'target' has found, trained from random weights",
    _widths,
    begins_with=OURS,
  ),
):
  register(_method)
_OURS |= set(METHODS)
