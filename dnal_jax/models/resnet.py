"""Residual networks (1512.03385) with a gate on each convolution of a branch.

B batch, H height, W width, C channels. Shortcuts have no gates, so a channel
of the residual stream is pruned only if the gates of all branches that write
it are closed and no shortcut convolution writes it.
"""

from functools import partial

from flax import linen
import jax

from dnal_jax import nn


class BasicBlock(linen.Module):
  """Two 3x3 convolutions; shortcut without parameters (option A); for CIFAR."""

  inputs: int  # channels before the block
  features: int  # channels after it
  stride: int
  keep: nn.Keep
  train: bool

  @linen.compact
  def __call__(self, m: nn.Features) -> nn.Features:
    mid, out = nn.chain(self, mid=self.features, out=self.features)
    conv = partial(nn.ConvBn, train=self.train)
    y = conv(mid, 3, self.stride, gate=nn.Gate(name='mid'), name='conv1')(m)
    y = nn.act(nn.relu, y)
    y = conv(out, 3, gate=nn.Gate(name='out'), name='conv2')(y)
    shift = (self.features - self.inputs) // 2
    shortcut = nn.subsample(m, self.stride, shift)
    return nn.act(nn.relu_of_sum, nn.add(y, shortcut=shortcut))


class Bottleneck(linen.Module):
  """1x1, 3x3 with the stride, 1x1 to four times the width; for ImageNet."""

  inputs: int  # channels before the block
  features: int  # channels after it
  stride: int
  keep: nn.Keep
  train: bool

  @linen.compact
  def __call__(self, m: nn.Features) -> nn.Features:
    mid1, mid2, out = nn.chain(
      self,
      mid1=self.features // 4,
      mid2=self.features // 4,
      out=self.features,
    )
    conv = partial(nn.ConvBn, train=self.train)
    y = conv(mid1, 1, gate=nn.Gate(name='mid1'), name='conv1')(m)
    y = nn.act(nn.relu, y)
    y = conv(mid2, 3, self.stride, gate=nn.Gate(name='mid2'), name='conv2')(y)
    y = nn.act(nn.relu, y)
    y = conv(out, 1, gate=nn.Gate(name='out'), name='conv3')(y)
    if self.stride != 1 or self.inputs != self.features:
      width = nn.ungated(self.features)
      m = conv(width, 1, self.stride, name='downsample')(m)
    return nn.act(nn.relu_of_sum, nn.add(y, shortcut=m))


class ResNet(linen.Module):
  """Stem, stages of residual blocks, global average, linear classifier."""

  classes: int
  block: type[BasicBlock] | type[Bottleneck]
  blocks: tuple[int, ...]  # per stage
  features: tuple[int, ...]  # of the residual stream, per stage
  stem_layer: tuple[int, int, int]  # channels, kernel, stride
  stem_pool: bool  # 3x3 max-pool of stride 2 after the stem
  width: float = 1.0  # multiplies every width but `classes`
  keep: nn.Keep = nn.KEEP_ALL

  @property
  def min_image(self) -> int:
    """Smallest image side in pixels: the total stride."""
    return (
      self.stem_layer[2] * (1 + self.stem_pool) * 2 ** (len(self.blocks) - 1)
    )

  @linen.compact
  def __call__(self, x: jax.Array, train: bool = False) -> jax.Array:
    """[B, H, W, C] float32 -> logits [B, classes] float32."""
    channels, kernel, stride = self.stem_layer
    inputs = nn.scaled(channels, self.width)
    m = nn.ConvBn(
      nn.gated(self, 'stem', inputs),
      kernel,
      stride,
      gate=nn.Gate(name='stem'),
      train=train,
      name='stem_conv',
    )(nn.image(x))
    m = nn.act(nn.relu, m)
    if self.stem_pool:
      m = nn.max_pool(m, 3, pad=1)
    for i, (blocks, stage) in enumerate(
      zip(self.blocks, self.features, strict=True), 1
    ):
      features = nn.scaled(stage, self.width)
      for j in range(1, blocks + 1):
        m = self.block(
          inputs,
          features,
          stride=2 if i > 1 and j == 1 else 1,
          keep=self.keep,
          train=train,
          name=f'block{i}_{j}',
        )(m)
        inputs = features
    return nn.Head(self.classes, train=train, name='head')(nn.average(m))
