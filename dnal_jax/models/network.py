"""What a network must provide to be trained, pruned and counted."""

from collections.abc import Callable
from typing import Any, NamedTuple, Protocol

from dnal_jax import nn


class Network(Protocol):
  """A Flax module [B, H, W, C] -> logits [B, classes], built of `dnal_jax.nn`.

  Its `__call__(x, train=False)` ends with `nn.Head(..., name='head')`.
  """

  classes: int
  width: float  # multiplies every width but `classes`
  keep: nn.Keep  # the channels that the network has

  @property
  def min_image(self) -> int:
    """Smallest image side in pixels."""
    ...

  def init(self, rngs: Any, *args: Any, **kwargs: Any) -> Any: ...
  def apply(self, variables: Any, *args: Any, **kwargs: Any) -> Any: ...


class Variant(NamedTuple):
  """A network with the images and classes that it was published for."""

  build: Callable[..., Network]  # (classes=, width=, keep=)
  image: int  # side in pixels; three channels
  classes: int
