"""Parameter groups and their optimizers."""

from collections.abc import Mapping
import dataclasses
import re
from typing import Any

import optax

from dnal_jax.training.schedule import LearningRate


@dataclasses.dataclass(frozen=True)
class ParamGroup:
  """A set of leaves trained alike, by SGD with momentum."""

  match: str  # regex on a whole path: 'params/head/logits/kernel', 'gates/...'
  lr: LearningRate
  momentum: float = 0.9
  weight_decay: float = 0.0  # L2, added to the gradient as PyTorch's SGD does
  nesterov: bool = False

  def __post_init__(self):
    try:
      re.compile(self.match)
    except re.error as error:
      raise ValueError(
        f"match is '{self.match}', which is no regular expression ({error})"
      ) from error
    if not 0 <= self.momentum < 1:
      raise ValueError(f'momentum is {self.momentum}; it must be in [0, 1)')
    if self.weight_decay < 0:
      raise ValueError(
        f'weight_decay is {self.weight_decay}; it must not be negative'
      )


def sgd(
  group: ParamGroup, steps_per_epoch: int, numbers: Mapping[str, Any]
) -> optax.GradientTransformation:
  return optax.chain(
    optax.add_decayed_weights(group.weight_decay),
    optax.sgd(
      lambda step: group.lr(step / steps_per_epoch, numbers),
      group.momentum,
      group.nesterov,
    ),
  )
