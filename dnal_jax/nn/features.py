"""Feature maps and layer widths as lists of channel ids instead of numbers.

B batch, H height, W width, C channels. The id of a channel is its index in the
unpruned network and never changes: a layer of width (0, 3) is the full layer
without all other channels. One network definition thus serves as the full, the
masked and the pruned network, and each feature map knows exactly which channels
it still has (ours; not in the paper).
"""

from collections.abc import Callable, Mapping
import dataclasses
from functools import partial
import math
from typing import Any, NamedTuple

from flax import linen
from flax.core import FrozenDict
import jax
import jax.numpy as jnp

from dnal_jax import errors
from dnal_jax.ops import convolution

Ids = tuple[int, ...]

# {path of a gate: ids of the channels to keep}. A gate without an entry keeps
# all of its channels.
Keep = Mapping[str, Ids]

KEEP_ALL: Keep = FrozenDict()  # the full network

MAX_FLAT = 2**22  # channels of a flattened map; each of them gets an id


class Width(NamedTuple):
  """The channels that a layer produces, and the gate that selects them."""

  ids: Ids
  gate: str | None  # path of the gate; None: these channels are never pruned
  # Paths of the gates of the layers that read it, one after the other and alone
  # (`chain`): without channels of any of them there are none here.
  readers: tuple[str, ...] = ()


class Written(NamedTuple):
  """The part of a map that one layer writes: `channels` of it, ids in `width`,
  are at `ids` of the map."""

  layer: str  # its path; '' for the image
  width: Width
  channels: Ids
  ids: Ids


@partial(
  jax.tree_util.register_dataclass,
  data_fields=['x'],
  meta_fields=['ids', 'gates', 'cut_off_by', 'written'],
)
@dataclasses.dataclass(frozen=True)
class Features:
  """A feature map with the ids of its channels; a pytree with the leaf `x`."""

  x: jax.Array  # [B, H, W, len(ids)], or [B, len(ids)] after `flatten`
  ids: Ids
  # Paths of the gates of the layers that wrote x; after `add`, of all branches.
  gates: tuple[str, ...] = ()
  # Gates without channels that keep the image from reaching x; () if none do.
  cut_off_by: tuple[str, ...] = ()
  # By the layers that wrote x: what keeps its channels alive.
  written: tuple[Written, ...] = ()

  def __getattr__(self, name: str) -> Any:
    """Of names that the class does not have."""
    if name in ('ndim', 'shape', 'dtype', '__jax_array__', '__array__'):
      raise TypeError(
        'an operation on arrays was given a feature map of dnal_jax: use a'
        " layer of dnal_jax.nn in place of flax's, nn.act(f, m) for an"
        ' activation, and m.x for the array alone'
      )
    raise AttributeError(f"Features has no '{name}'")


def gated(module: linen.Module, gate: str, n: int) -> Width:
  """The width of a layer of n channels that the gate `gate` of `module` prunes.

  `module` has a field `keep`; without an entry there, all n channels are kept.
  """
  path = '/'.join((*module.path, gate))
  keep: Keep = module.keep  # pyright: ignore[reportAttributeAccessIssue]
  return Width(tuple(keep.get(path, range(n))), path)


def ungated(n: int) -> Width:
  """The width of a layer of n channels that are never pruned."""
  return Width(tuple(range(n)), None)


def chain(module: linen.Module, **gates: int) -> list[Width]:
  """Widths of consecutive layers, gate=channels, each read by the next alone.

  If a layer has no channels, the layers before it have none either, because
  nothing reads them: a branch whose last gate is closed vanishes as a whole.
  """
  widths = [gated(module, gate, n) for gate, n in gates.items()]
  for i in range(len(widths) - 2, -1, -1):
    after = widths[i + 1]
    assert after.gate is not None
    widths[i] = widths[i]._replace(
      ids=widths[i].ids if after.ids else (),
      readers=(after.gate, *after.readers),
    )
  return widths


def image(x: jax.Array) -> Features:
  """The network's input: all channels of the images [B, H, W, C]."""
  return layer_output(x, '', ungated(x.shape[-1]))


def layer_output(
  x: jax.Array, layer: str, width: Width, cut_off_by: tuple[str, ...] = ()
) -> Features:
  """What the layer of a path and width has computed: [B, H, W, n] or [B, n]."""
  gates = () if width.gate is None else (width.gate,)
  written = Written(layer, width, width.ids, width.ids)
  return Features(x, width.ids, gates, cut_off_by, (written,))


def act(f: Callable[[jax.Array], jax.Array], m: Features) -> Features:
  """f(m), where f acts on each channel by itself, such as an activation."""
  return dataclasses.replace(m, x=f(m.x))


def max_pool(m: Features, window: int, pad: int = 0) -> Features:
  """Maximum over windows of window x window positions, stride 2."""
  return act(lambda x: convolution.max_pool(x, window, stride=2, pad=pad), m)


def average(m: Features) -> Features:
  """Mean over all positions: [B, H, W, n] -> [B, n]."""
  return act(lambda x: x.mean((1, 2)), m)


def flatten(m: Features, channels: int) -> Features:
  """[B, H, W, n] -> [B, H * W * n].

  Channel c at position p gets the id p * channels + c, where `channels` is the
  unpruned width.

  Raises:
    UserError: the result would have more than MAX_FLAT channels.
  """
  b, h, w, n = m.x.shape
  if h * w * n > MAX_FLAT:
    raise errors.UserError(
      f'cannot flatten a map of {h} x {w} positions and {n} channels: the'
      f' result may have {MAX_FLAT:,} channels at most; use smaller images'
    )

  def flat(ids: Ids) -> Ids:
    return tuple(p * channels + c for p in range(h * w) for c in ids)

  written = tuple(
    part._replace(channels=part.channels * (h * w), ids=flat(part.ids))
    for part in m.written
  )
  x = m.x.reshape(b, h * w * n)
  return dataclasses.replace(m, x=x, ids=flat(m.ids), written=written)


def add(*branches: Features, shortcut: Features | None = None) -> Features:
  """The sum of maps with different channels; a missing channel counts as zero.

  The result has the gates of the branches. The image reaches it unless it is
  cut off from all summands.

  Raises:
    ValueError: the maps have different positions.
  """
  maps = branches if shortcut is None else (*branches, shortcut)
  shapes = {m.x.shape[:-1] for m in maps}
  if len(shapes) > 1:
    sides = ' and '.join(
      sorted('x'.join(map(str, shape[1:])) for shape in shapes)
    )
    raise ValueError(
      f'nn.add has maps of {sides} positions; where a branch has a stride, give'
      ' shortcut=nn.subsample(m, stride, 0)'
    )
  ids = tuple(sorted(set().union(*(m.ids for m in maps))))
  x = sum(select(m, ids).x for m in maps if m.ids or not ids)
  gates = tuple(gate for m in branches for gate in m.gates)
  reached = any(not m.cut_off_by for m in maps)
  closed = dict.fromkeys(gate for m in maps for gate in m.cut_off_by)
  cut_off_by = () if reached else tuple(closed)
  written = tuple(part for m in maps for part in m.written)
  return Features(jnp.asarray(x), ids, gates, cut_off_by, written)


def select(m: Features, ids: Ids) -> Features:
  """The channels `ids` of m, zero where m lacks them."""
  if ids == m.ids:
    return m
  column = {c: i for i, c in enumerate(m.ids)}
  x = convolution.select_channels(m.x, tuple(column.get(c) for c in ids))
  return dataclasses.replace(m, x=x, ids=ids)


def subsample(m: Features, stride: int, shift: int) -> Features:
  """Every stride-th position; `shift` channels of zeros come before channel 0.

  ResNet's shortcut without parameters (option A of 1512.03385, section 4.2).
  """

  def shifted(ids: Ids) -> Ids:
    return tuple(c + shift for c in ids)

  written = tuple(part._replace(ids=shifted(part.ids)) for part in m.written)
  x = m.x[:, ::stride, ::stride]
  return dataclasses.replace(m, x=x, ids=shifted(m.ids), written=written)


def scaled(channels: int, width: float) -> int:
  """`channels` times the width multiplier (1704.04861), a multiple of 8."""
  if width == 1.0:
    return channels
  return max(8, math.floor(channels * width / 8 + 0.5) * 8)
