"""MobileNetV2 (1801.04381): inverted residuals with depthwise convolutions.

B batch, H height, W width, C channels. The gate `hidden` multiplies the output
of a block's depthwise convolution and selects the channels of the expansion
before it as well, or of the stem if the block has no expansion; `out`
multiplies the output of the projection, `last` that of the last 1x1
convolution.
"""

from functools import partial
from typing import Literal

from flax import linen
import jax

from dnal_jax import nn


class InvertedResidual(linen.Module):
  """Expand 1x1, depthwise, project 1x1 without activation (Fig. 4)."""

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
      hidden,
      self.kernel,
      self.stride,
      depthwise=True,
      gate=nn.Gate(name='hidden'),
      name='depthwise',
    )(y)
    y = nn.act(linen.relu6, y)
    y = conv(out, 1, gate=nn.Gate(name='out'), name='project')(y)
    if self.shortcut == 'none':
      return y
    if self.shortcut == 'conv':
      m = conv(nn.ungated(self.features), 1, name='shortcut')(m)
    return nn.add(y, shortcut=m)


class MobileNetV2(linen.Module):
  """Stem, inverted residuals, 1x1 convolution, average, linear classifier."""

  classes: int
  # Rows of (expansion, channels, blocks, stride of the first block), Table 2.
  stages: tuple[tuple[int, int, int, int], ...]
  stem_stride: int
  expand_all: bool  # also an expansion convolution where expansion is 1
  shortcut_conv: bool  # at stride 1 between unequal widths; False: none there
  stem_channels: int = 32
  last_channels: int = 1280
  width: float = 1.0  # multiplies every width but `classes`
  keep: nn.Keep = nn.KEEP_ALL

  @property
  def min_image(self) -> int:
    """Smallest image side in pixels: the total stride."""
    side = self.stem_stride
    for *_, stride in self.stages:
      side *= stride
    return side

  def _shortcut(self, inputs: int, features: int, stride: int):
    if stride == 1 and inputs == features:
      return 'identity'
    return 'conv' if stride == 1 and self.shortcut_conv else 'none'

  def _is_read_by_depthwise_only(self, stem: int) -> bool:
    """Whether one depthwise convolution and no shortcut reads the stem."""
    expansion, channels, _, stride = self.stages[0]
    features = nn.scaled(channels, self.width)
    shortcut = self._shortcut(stem, features, stride)
    return expansion == 1 and not self.expand_all and shortcut == 'none'

  @linen.compact
  def __call__(self, x: jax.Array, train: bool = False) -> jax.Array:
    """[B, H, W, C] float32 -> logits [B, classes] float32."""
    inputs = nn.scaled(self.stem_channels, self.width)
    width = nn.ungated(inputs)
    if self._is_read_by_depthwise_only(inputs):
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
      nn.gated(self, 'last', last),
      1,
      gate=nn.Gate(name='last'),
      train=train,
      name='last_conv',
    )(m)
    m = nn.act(linen.relu6, m)
    return nn.Head(self.classes, train=train, name='head')(nn.average(m))
