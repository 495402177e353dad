"""Feature maps and widths that are lists of channel ids rather than numbers.

B batch, H height, W width, C channels. A channel keeps its id, its index in
the unpruned network, for life: a layer of width (0, 3) is the full layer with
all other channels removed. The same network definition thus serves the full,
the gated and the pruned form, and each feature map knows exactly which
channels it still has (our design; no counterpart in the paper).
"""

from collections.abc import Callable, Mapping
import dataclasses
import math
from typing import NamedTuple

from flax import linen
from flax.core import FrozenDict
import jax
import jax.numpy as jnp

from dnal_jax import errors
from dnal_jax.ops import batch_norm, convolution

Ids = tuple[int, ...]

Keep = Mapping[str, Ids]  # path of a gate -> channels that survive; {} is all

NO_KEEP: Keep = FrozenDict()

MOST_FLAT = 2**22  # channels of a flattened map, each of which gets an id


class Width(NamedTuple):
  """The channels a layer is to produce, and the gate that decides over them."""

  ids: Ids
  gate: str | None  # path of the gate; None: these channels are never cut


@dataclasses.dataclass(frozen=True)
class Features:
  """A feature map and the ids of the channels it still has."""

  x: jax.Array  # [B, H, W, len(ids)], or [B, len(ids)] after `flatten`
  ids: Ids
  # Paths of the gates that wrote x last; after `add`, of all its branches.
  gates: tuple[str, ...] = ()
  # Gates without any channel that keep the image from reaching x.
  cut_off_by: tuple[str, ...] = ()
  # What x is, where it comes straight from a BatchNorm.
  normalised: batch_norm.Scalable | None = None

  def __post_init__(self):
    if self.normalised and self.normalised.x is not self.x:
      object.__setattr__(self, 'normalised', None)  # `replace` carries it along


def gated(module: linen.Module, gate: str, n: int) -> Width:
  """The width of a layer of n channels whose gate is `gate` inside `module`.

  `module` carries `keep`; a gate that `keep` does not name is kept whole.
  """
  path = '/'.join((*module.path, gate))
  keep: Keep = module.keep  # pyright: ignore[reportAttributeAccessIssue]
  return Width(tuple(keep.get(path, range(n))), path)


def full(n: int) -> Width:
  """The width of a layer of n channels that no gate decides over."""
  return Width(tuple(range(n)), None)


def chain(module: linen.Module, **gates: int) -> list[Width]:
  """Widths of layers that read one another only, in order (gate=channels).

  What stands before an emptied layer is read by nobody, so it is empty too:
  a branch whose last gate is closed vanishes as a whole.
  """
  widths = [gated(module, gate, n) for gate, n in gates.items()]
  for i in range(len(widths) - 2, -1, -1):
    if not widths[i + 1].ids:
      widths[i] = widths[i]._replace(ids=())
  return widths


def image(x: jax.Array) -> Features:
  """The network's input: every channel of the images [B, H, W, C]."""
  return Features(x, tuple(range(x.shape[-1])))


def act(f: Callable[[jax.Array], jax.Array], m: Features) -> Features:
  """Applies to the map a function that leaves channels where they are."""
  return dataclasses.replace(m, x=f(m.x))


def max_pool(m: Features, window: int, pad: int = 0) -> Features:
  """Maximum over window x window positions, stride 2."""
  return act(lambda x: convolution.max_pool(x, window, stride=2, pad=pad), m)


def average(m: Features) -> Features:
  """Mean over all positions: [B, H, W, n] -> [B, n]."""
  return act(lambda x: x.mean((1, 2)), m)


def flatten(m: Features, channels: int) -> Features:
  """[B, H, W, n] -> [B, H * W * n]; position p of channel c gets the id
  p * channels + c, where `channels` is the unpruned width.

  Raises:
    UserError: that makes more than MOST_FLAT.
  """
  b, h, w, n = m.x.shape
  if h * w * n > MOST_FLAT:
    raise errors.UserError(
      f'a map of {h} x {w} positions and {n} channels is too large to be'
      f' flattened: {MOST_FLAT:,} numbers is the most; make the images smaller'
    )
  ids = tuple(p * channels + c for p in range(h * w) for c in m.ids)
  return dataclasses.replace(m, x=m.x.reshape(b, h * w * n), ids=ids)


def add(*branches: Features, shortcut: Features | None = None) -> Features:
  """Sum of maps that may lack different channels; a lacking one is zero."""
  maps = branches if shortcut is None else (*branches, shortcut)
  ids = tuple(sorted(set().union(*(m.ids for m in maps))))
  x = sum(select(m, ids).x for m in maps if m.ids or not ids)
  gates = tuple(gate for m in branches for gate in m.gates)
  seen = any(not m.cut_off_by for m in maps)
  closed = (
    () if seen else tuple(dict.fromkeys(c for m in maps for c in m.cut_off_by))
  )
  return Features(jnp.asarray(x), ids, gates, closed)


def select(m: Features, ids: Ids) -> Features:
  """The channels `ids` of m, zero where m lacks them."""
  if ids == m.ids:
    return m
  column = {c: i for i, c in enumerate(m.ids)}
  x = convolution.select_channels(m.x, tuple(column.get(c) for c in ids))
  return dataclasses.replace(m, x=x, ids=ids)


def subsample(m: Features, stride: int, shift: int) -> Features:
  """ResNet's parameter-free shortcut (option A of 1512.03385, section 4.2):
  every stride-th position; `shift` new zero channels come before channel 0."""
  ids = tuple(c + shift for c in m.ids)
  return dataclasses.replace(m, x=m.x[:, ::stride, ::stride], ids=ids)


def scaled(channels: int, width: float) -> int:
  """`channels` times the width multiplier, to a multiple of 8 (1704.04861)."""
  if width == 1.0:
    return channels
  return max(8, math.floor(channels * width / 8 + 0.5) * 8)
