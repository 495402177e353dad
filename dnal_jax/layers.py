"""Layers whose width is a list of channel ids rather than a number.

B batch, H height, W width, C channels. A channel keeps its id, its index in
the unpruned network, for life: a layer told to produce the ids (0, 3) is the
full layer with all other channels cut away. The same network definition thus
serves the full, the gated and the compact form, and each feature map knows
exactly which channels it still has (our design; no counterpart in the paper).

Layers compute in the dtype of the images they are given, with parameters and
BatchNorm statistics in float32; `Head` gives logits in float32 or better.
"""

from collections.abc import Callable, Mapping
import dataclasses
import math
from typing import NamedTuple

from flax import linen as nn
from flax.core import FrozenDict
import jax
import jax.numpy as jnp

from dnal_jax import conv, errors, norm

Initializer = jax.nn.initializers.Initializer
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
  closed: tuple[str, ...] = ()
  # What x is, where it comes straight from a BatchNorm.
  normalised: norm.Scalable | None = None

  def __post_init__(self):
    if self.normalised and self.normalised.x is not self.x:
      object.__setattr__(self, 'normalised', None)  # `replace` carries it along


class ConvBn(nn.Module):
  """Convolution, then BatchNorm, producing the channels `width.ids`.

  A layer without outputs has no variables. A layer without inputs is what
  remains of it exactly: zero (plus its bias) through BatchNorm, a constant.
  """

  width: Width
  kernel: int
  stride: int = 1
  depthwise: bool = False
  bias: bool = False
  epsilon: float = 1e-5
  train: bool = False

  @nn.compact
  def __call__(self, m: Features) -> Features:
    if self.depthwise:
      m = select(m, self.width.ids)
    b, h, w, c = m.x.shape
    n = len(self.width.ids)
    out_shape = (b, -(-h // self.stride), -(-w // self.stride), n)
    x = jnp.zeros(out_shape, m.x.dtype)
    gates = () if self.width.gate is None else (self.width.gate,)
    if not n:
      return Features(x, (), gates, m.closed)
    if c:
      shape = (self.kernel, self.kernel, 1 if self.depthwise else c, n)
      kernel = self.param('kernel', _he_fan_out, shape, jnp.float32)
      x = conv.conv2d(
        m.x,
        kernel.astype(x.dtype),
        stride=self.stride,
        depthwise=self.depthwise,
      )
    if self.bias:
      bias = self.param('bias', nn.initializers.zeros, (n,), jnp.float32)
      x = x + bias.astype(x.dtype)
    y = norm.BatchNorm(self.epsilon, self.train, name='bn')(x)
    return Features(y.x, self.width.ids, gates, m.closed, y)


class Gate(nn.Module):
  """Scales channel c by g[c], read from the variable collection `gates`.

  The network multiplies; `gating` decides by what. Ones at init. Behind a
  BatchNorm, its scale and bias are multiplied instead of the map: the same
  function, and under `jit` no pass over a map more (ours).
  """

  @nn.compact
  def __call__(self, m: Features) -> Features:
    path = '/'.join(self.path)
    if m.gates != (path,):
      raise ValueError(
        f"gate '{path}' stands behind a layer of width {m.gates!r}: give that"
        f" layer the width gated(self, '{self.name}', ...)"
      )
    if not m.ids:
      return dataclasses.replace(m, closed=(*m.closed, path))
    g = self.variable('gates', 'g', jnp.ones, (len(m.ids),), jnp.float32)
    if m.normalised:
      x = m.normalised.times(g.value)
    else:
      x = m.x * g.value.astype(m.x.dtype)
    return dataclasses.replace(m, x=x)


class Dense(nn.Module):
  """Linear layer with bias. Its outputs are never cut."""

  features: int
  kernel_init: Initializer = nn.initializers.normal(0.01)

  @nn.compact
  def __call__(self, m: Features) -> Features:
    n = len(m.ids)
    x = jnp.zeros((m.x.shape[0], self.features), m.x.dtype)
    if n:
      shape = (n, self.features)
      kernel = self.param('kernel', self.kernel_init, shape, jnp.float32)
      x = m.x @ kernel.astype(x.dtype)
    bias = self.param(
      'bias', nn.initializers.zeros, (self.features,), jnp.float32
    )
    x = x + bias.astype(x.dtype)
    return Features(x, tuple(range(self.features)), closed=m.closed)


class Head(nn.Module):
  """Classifier: hidden layers with BatchNorm and ReLU, then the logits."""

  classes: int
  hidden: tuple[int, ...] = ()
  train: bool = False
  kernel_init: Initializer = nn.initializers.normal(0.01)

  @nn.compact
  def __call__(self, m: Features) -> jax.Array:  # [B, classes] float32
    for i, features in enumerate(self.hidden, 1):
      m = Dense(features, self.kernel_init, name=f'fc{i}')(m)
      bn = norm.BatchNorm(1e-5, self.train, name=f'bn{i}')
      m = act(lambda x, bn=bn: bn(x).x, m)
      m = act(relu, m)
    # A softmax over logits of 8 bits would see classes tie.
    m = act(lambda x: x.astype(jnp.promote_types(x.dtype, jnp.float32)), m)
    return Dense(self.classes, self.kernel_init, name='logits')(m).x


def gated(module: nn.Module, gate: str, n: int) -> Width:
  """The width of a layer of n channels whose gate is `gate` inside `module`.

  `module` carries `keep`; a gate that `keep` does not name is kept whole.
  """
  path = '/'.join((*module.path, gate))
  keep: Keep = module.keep  # pyright: ignore[reportAttributeAccessIssue]
  return Width(tuple(keep.get(path, range(n))), path)


def full(n: int) -> Width:
  """The width of a layer of n channels that no gate decides over."""
  return Width(tuple(range(n)), None)


def chain(module: nn.Module, **gates: int) -> list[Width]:
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
  return act(lambda x: conv.max_pool(x, window, stride=2, pad=pad), m)


def relu(x: jax.Array) -> jax.Array:
  """max(x, 0) of any shape, with the gradient 0 at 0; for the result of `add`
  there is `relu_of_sum`.

  Written as a choice, because XLA on CPU takes a maximum with a constant for
  free to recompute, and with it the residual sum behind it, the one before
  that, and so on down to the first: a ResNet56 step takes twice as long.
  """
  return jnp.where(x <= 0, jnp.zeros((), x.dtype), x)


@jax.custom_vjp
def relu_of_sum(x: jax.Array) -> jax.Array:
  """`relu`, for a sum of maps: its gradient, in reverse mode only, is told by
  its result, which the next layer reads, too. By what it is given, XLA would
  read all maps of the sum again (CPU: a step of a cut ResNet56 takes a tenth
  longer)."""
  return relu(x)


def _relu_of_sum_forward(x):
  y = relu(x)
  return y, y <= 0


relu_of_sum.defvjp(
  _relu_of_sum_forward,
  lambda closed, dy: (jnp.where(closed, jnp.zeros((), dy.dtype), dy),),
)


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
  seen = any(not m.closed for m in maps)
  closed = (
    () if seen else tuple(dict.fromkeys(c for m in maps for c in m.closed))
  )
  return Features(jnp.asarray(x), ids, gates, closed)


def select(m: Features, ids: Ids) -> Features:
  """The channels `ids` of m, zero where m lacks them."""
  if ids == m.ids:
    return m
  column = {c: i for i, c in enumerate(m.ids)}
  x = conv.channels(m.x, tuple(column.get(c) for c in ids))
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


# Kernels [k, k, in, out] ~ N(0, sqrt(2 / (k * k * out))) (reference code).
_he_fan_out = nn.initializers.variance_scaling(2.0, 'fan_out', 'normal')
