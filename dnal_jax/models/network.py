"""What is asked of a network."""

from collections.abc import Callable
from typing import Any, NamedTuple, Protocol

from dnal_jax import nn


class Network(Protocol):
  """What is asked of a network: a flax module built of `layers`."""

  classes: int
  width: float  # multiplies every width but `classes`
  keep: nn.Keep

  @property
  def min_image(self) -> int:
    """Smallest image side, in pixels."""
    ...

  def init(self, rngs: Any, *args: Any, **kwargs: Any) -> Any: ...
  def apply(self, variables: Any, *args: Any, **kwargs: Any) -> Any: ...


class Variant(NamedTuple):
  """A network and the images and classes it was published for."""

  build: Callable[..., Network]  # (classes=, width=, keep=)
  image: int  # side in pixels; three channels
  classes: int
