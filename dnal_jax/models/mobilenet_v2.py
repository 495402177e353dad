"""MobileNetV2 (1801.04381): inverted residuals with depthwise convolutions.

B batch, H height, W width, C channels. The gate `hidden` stands behind the
depthwise convolution and decides over the expansion that feeds it as well
(over the stem, where a block has no expansion); `out` stands behind the
projection; `last` behind the last 1x1 convolution.
"""

from functools import partial
from typing import Literal

from flax import linen
import jax

from dnal_jax import nn


class InvertedResidual(linen.Module):
  """Expand 1x1, depthwise, project 1x1 without activation (their Fig. 4)."""

  hidden: int
  features: int
  stride: int
  expand: bool  # False: the depthwise convolution reads the block's input
  shortcut: Literal['none', 'identity', 'conv']
  keep: nn.Keep
  train: bool
  kernel: int = 3
  epsilon: float = 1e-5

  @linen.compact
  def __call__(self, m: nn.Features) -> nn.Features:
    hidden, out = nn.chain(self, hidden=self.hidden, out=self.features)
    conv = partial(nn.ConvBn, train=self.train, epsilon=self.epsilon)
    y = m
    if self.expand:
      y = nn.act(linen.relu6, conv(hidden, 1, name='expand')(y))
    y = conv(
      hidden, self.kernel, self.stride, depthwise=True, name='depthwise'
    )(y)
    y = nn.act(linen.relu6, nn.Gate(name='hidden')(y))
    y = nn.Gate(name='out')(conv(out, 1, name='project')(y))
    if self.shortcut == 'none':
      return y
    if self.shortcut == 'conv':
      m = conv(nn.full(self.features), 1, name='shortcut')(m)
    return nn.add(y, shortcut=m)


class MobileNetV2(linen.Module):
  """Stem, inverted residuals, 1x1 convolution, average, linear classifier."""

  classes: int
  # Rows of (expansion, channels, blocks, stride of the first), Table 2.
  stages: tuple[tuple[int, int, int, int], ...]
  stem_stride: int
  expand_all: bool  # blocks of expansion 1 have an expansion convolution too
  shortcut_conv: bool  # at stride 1 between unequal widths; else none there
  stem_channels: int = 32
  last_channels: int = 1280
  width: float = 1.0  # multiplies every width but `classes`
  keep: nn.Keep = nn.NO_KEEP

  @property
  def min_image(self) -> int:
    """Smallest image side, in pixels: the total stride."""
    side = self.stem_stride
    for *_, stride in self.stages:
      side *= stride
    return side

  def _shortcut(self, inputs: int, features: int, stride: int):
    if stride == 1 and inputs == features:
      return 'identity'
    return 'conv' if stride == 1 and self.shortcut_conv else 'none'

  def _first_block_alone_reads(self, stem: int) -> bool:
    """Whether the stem feeds one depthwise convolution and no shortcut."""
    expansion, channels, _, stride = self.stages[0]
    features = nn.scaled(channels, self.width)
    shortcut = self._shortcut(stem, features, stride)
    return expansion == 1 and not self.expand_all and shortcut == 'none'

  @linen.compact
  def __call__(self, x: jax.Array, train: bool = False) -> jax.Array:
    """[B, H, W, C] float32 -> logits [B, classes] float32."""
    inputs = nn.scaled(self.stem_channels, self.width)
    width = nn.full(inputs)
    if self._first_block_alone_reads(inputs):
      width = nn.gated(self, 'block1_1/hidden', inputs)
    m = nn.ConvBn(width, 3, self.stem_stride, train=train, name='stem_conv')(
      nn.image(x)
    )
    m = nn.act(linen.relu6, m)
    for i, (expansion, channels, blocks, stride) in enumerate(self.stages, 1):
      features = nn.scaled(channels, self.width)
      for j in range(1, blocks + 1):
        first = stride if j == 1 else 1
        m = InvertedResidual(
          hidden=expansion * inputs,
          features=features,
          stride=first,
          expand=self.expand_all or expansion != 1,
          shortcut=self._shortcut(inputs, features, first),
          keep=self.keep,
          train=train,
          name=f'block{i}_{j}',
        )(m)
        inputs = features
    last = nn.scaled(self.last_channels, self.width)
    m = nn.ConvBn(
      nn.gated(self, 'last', last), 1, train=train, name='last_conv'
    )(m)
    m = nn.act(linen.relu6, nn.Gate(name='last')(m))
    return nn.Head(self.classes, train=train, name='head')(nn.average(m))
