"""Parameter groups, which leaves belong to which, and their optimizer."""

from collections.abc import Iterable, Mapping
import dataclasses
import re
from typing import Annotated, Any

import optax

from dnal_jax import errors, limits
from dnal_jax.limits import Range
from dnal_jax.training.schedule import LearningRate


@dataclasses.dataclass(frozen=True)
class ParamGroup:
  """Leaves that are trained alike, by SGD with momentum."""

  match: str  # regex on a whole path: 'params/head/logits/kernel', 'gates/...'
  lr: LearningRate
  momentum: Annotated[float, Range(min=0, below=1)] = 0.9
  # L2 penalty, added to the gradient as PyTorch's SGD does.
  weight_decay: Annotated[float, Range(min=0)] = 0.0
  nesterov: bool = False

  def __post_init__(self):
    limits.check(self)
    try:
      re.compile(self.match)
    except re.error as error:
      raise ValueError(
        f"match is '{self.match}', which is no regular expression ({error})"
      ) from error


def assign_groups(
  groups: Mapping[str, ParamGroup], paths: Iterable[str]
) -> dict[str, str]:
  """{path: name of its group} of all leaves that train; the rest are frozen.

  Raises:
    UserError: a pattern matches nothing, or two patterns match the same path.
  """
  paths = list(paths)
  assigned: dict[str, str] = {}
  for name, group in groups.items():
    matched = [path for path in paths if re.fullmatch(group.match, path)]
    if not matched:
      raise errors.UserError(
        f"pattern '{group.match}' of group '{name}' matches nothing; there are"
        f' {_examples(paths)}'
      )
    for path in matched:
      if path in assigned:
        raise errors.UserError(
          f"'{path}' is in two groups, '{assigned[path]}' and '{name}'; make"
          ' their patterns exclude each other'
        )
      assigned[path] = name
  return assigned


def make_optimizer(
  groups: Mapping[str, ParamGroup],
  paths: Iterable[str],
  steps_per_epoch: int,
  rates: Mapping[str, Mapping[str, Any]],
) -> optax.GradientTransformation:
  """The optimizer of {path: leaf} for those of `paths` that train.

  `rates` has the `LearningRate.coefficients` of each group.
  """
  return optax.partition(
    {
      name: _sgd(group, steps_per_epoch, rates[name])
      for name, group in groups.items()
    },
    assign_groups(groups, paths),
  )


def _sgd(
  group: ParamGroup, steps_per_epoch: int, coefficients: Mapping[str, Any]
) -> optax.GradientTransformation:
  return optax.chain(
    optax.add_decayed_weights(group.weight_decay),
    optax.sgd(
      lambda step: group.lr(step / steps_per_epoch, coefficients),
      group.momentum,
      group.nesterov,
    ),
  )


def _examples(paths: list[str]) -> str:
  """A few of the paths, those of the classifier first."""
  first = [path for path in paths if '/head/' in path]
  rest = [path for path in paths if path not in first]
  return ', '.join(f"'{path}'" for path in (first + rest)[:6]) + ', ...'
