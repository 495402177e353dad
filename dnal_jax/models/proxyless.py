"""The ProxylessNAS supernet (1812.00332) as a sum of its candidates.

B batch, H height, W width, C channels. Each block has six candidates, inverted
residuals of kernel 3, 5 or 7 and expansion 3 or 6, and is their sum, without
softmax or sampling, as in DNAL (Guo et al. 2022). Each candidate has gates of
its own, so the search makes candidates narrower or removes them; a block
without candidates is its shortcut.
"""

from collections.abc import Mapping
from functools import partial
import math

from flax import linen
import jax

from dnal_jax import nn
from dnal_jax.models import mobilenet_v2

# {name: (kernel, expansion)}
CANDIDATES = {
  f'{kernel}x{kernel}_e{expansion}': (kernel, expansion)
  for kernel in (3, 5, 7)
  for expansion in (3, 6)
}
_EPSILON = 1e-3


class MixedBlock(linen.Module):
  """Sum of the six candidates, and of the input if the shapes are equal."""

  inputs: int  # channels before the block
  features: int  # channels after it
  stride: int
  keep: nn.Keep
  train: bool

  @linen.compact
  def __call__(self, m: nn.Features) -> nn.Features:
    candidates = [
      mobilenet_v2.InvertedResidual(
        hidden=expansion * self.inputs,
        features=self.features,
        stride=self.stride,
        expand=True,
        shortcut='none',
        keep=self.keep,
        train=self.train,
        kernel=kernel,
        epsilon=_EPSILON,
        name=name,
      )(m)
      for name, (kernel, expansion) in CANDIDATES.items()
    ]
    identity = self.stride == 1 and self.inputs == self.features
    return nn.add(*candidates, shortcut=m if identity else None)


class Proxyless(linen.Module):
  """Stem, a plain block, mixed blocks, 1x1 convolution, average, classifier."""

  classes: int
  # Rows of (channels, blocks, stride of the first block).
  stages: tuple[tuple[int, int, int], ...]
  width: float = 1.0  # multiplies every width but `classes`
  keep: nn.Keep = nn.KEEP_ALL

  @property
  def min_image(self) -> int:
    """Smallest image side in pixels: the total stride."""
    return 2 * math.prod(stride for *_, stride in self.stages)

  @linen.compact
  def __call__(self, x: jax.Array, train: bool = False) -> jax.Array:
    """[B, H, W, C] float32 -> logits [B, classes] float32."""
    conv = partial(nn.ConvBn, train=train, epsilon=_EPSILON)
    stem = nn.scaled(32, self.width)
    inputs = nn.scaled(16, self.width)
    # Only the first block's depthwise convolution reads the stem.
    width = nn.gated(self, 'block0/hidden', stem)
    m = conv(width, 3, 2, name='stem_conv')(nn.image(x))
    m = mobilenet_v2.InvertedResidual(
      hidden=stem,
      features=inputs,
      stride=1,
      expand=False,
      shortcut='none',
      keep=self.keep,
      train=train,
      epsilon=_EPSILON,
      name='block0',
    )(nn.act(linen.relu6, m))
    for i, (channels, blocks, stride) in enumerate(self.stages, 1):
      features = nn.scaled(channels, self.width)
      for j in range(1, blocks + 1):
        m = MixedBlock(
          inputs,
          features,
          stride=stride if j == 1 else 1,
          keep=self.keep,
          train=train,
          name=f'block{i}_{j}',
        )(m)
        inputs = features
    last = nn.gated(self, 'last', nn.scaled(1280, self.width))
    m = conv(last, 1, gate=nn.Gate(name='last'), name='last_conv')(m)
    m = nn.average(nn.act(linen.relu6, m))
    head = nn.Head(
      self.classes, train=train, kernel_init=_uniform_fan_in, name='head'
    )
    return head(m)


def survivors(
  before: Mapping[str, nn.Ids], after: Mapping[str, nn.Ids]
) -> dict[str, list[str]]:
  """{block: its remaining candidates, as '5x5 e6 112/384'}.

  `before` and `after` are the channels of each gate of the full and of the
  learned network. The numbers are hidden channels, kept and in total. A
  candidate without hidden channels adds a constant (0/384) as long as its
  projection has channels; without those it is removed.
  """
  found: dict[str, list[str]] = {}
  for gate, hidden in before.items():
    block, _, candidate = gate.removesuffix('/hidden').rpartition('/')
    if candidate not in CANDIDATES or not gate.endswith('/hidden'):
      continue
    left = found.setdefault(block, [])
    if after.get(f'{block}/{candidate}/out'):
      name = candidate.replace('_', ' ')
      left.append(f'{name} {len(after.get(gate, ()))}/{len(hidden)}')
  return found


# U(-1/sqrt(fan_in), 1/sqrt(fan_in)), whose variance is 1/3 of 1/fan_in.
_uniform_fan_in = linen.initializers.variance_scaling(
  1 / 3, 'fan_in', 'uniform'
)
