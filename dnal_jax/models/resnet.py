"""Residual networks (1512.03385) with a gate on each convolution of a branch.

B batch, H height, W width, C channels. Shortcuts carry no gate, so a channel
of the residual stream is cut only where every branch that writes it is closed
and no shortcut convolution does.
"""

from flax import linen
import jax

from dnal_jax import nn


class BasicBlock(linen.Module):
  """Two 3x3 convolutions; parameter-free shortcut (option A). CIFAR form."""

  inputs: int
  features: int
  stride: int
  keep: nn.Keep
  train: bool

  @linen.compact
  def __call__(self, m: nn.Features) -> nn.Features:
    mid, out = nn.chain(self, mid=self.features, out=self.features)
    y = nn.ConvBn(mid, 3, self.stride, train=self.train, name='conv1')(m)
    y = nn.act(nn.relu, nn.Gate(name='mid')(y))
    y = nn.ConvBn(out, 3, train=self.train, name='conv2')(y)
    y = nn.Gate(name='out')(y)
    shift = (self.features - self.inputs) // 2
    return nn.act(
      nn.relu_of_sum,
      nn.add(y, shortcut=nn.subsample(m, self.stride, shift)),
    )


class Bottleneck(linen.Module):
  """1x1, 3x3 (with the stride), 1x1 to four times the width. ImageNet form."""

  inputs: int
  features: int  # after the block
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
    y = nn.ConvBn(mid1, 1, train=self.train, name='conv1')(m)
    y = nn.act(nn.relu, nn.Gate(name='mid1')(y))
    y = nn.ConvBn(mid2, 3, self.stride, train=self.train, name='conv2')(y)
    y = nn.act(nn.relu, nn.Gate(name='mid2')(y))
    y = nn.ConvBn(out, 1, train=self.train, name='conv3')(y)
    y = nn.Gate(name='out')(y)
    if self.stride != 1 or self.inputs != self.features:
      m = nn.ConvBn(
        nn.full(self.features),
        1,
        self.stride,
        train=self.train,
        name='downsample',
      )(m)
    return nn.act(nn.relu_of_sum, nn.add(y, shortcut=m))


class ResNet(linen.Module):
  """Stem, stages of residual blocks, global average, linear classifier."""

  classes: int
  block: type[BasicBlock] | type[Bottleneck]
  blocks: tuple[int, ...]  # per stage
  features: tuple[int, ...]  # of the residual stream, per stage
  stem_layer: tuple[int, int, int]  # channels, kernel, stride
  stem_pool: bool  # 3x3 max-pool of stride 2 behind the stem
  width: float = 1.0  # multiplies every width but `classes`
  keep: nn.Keep = nn.NO_KEEP

  @property
  def min_image(self) -> int:
    """Smallest image side, in pixels: the total stride."""
    return (
      self.stem_layer[2] * (1 + self.stem_pool) * 2 ** (len(self.blocks) - 1)
    )

  @linen.compact
  def __call__(self, x: jax.Array, train: bool = False) -> jax.Array:
    """[B, H, W, C] float32 -> logits [B, classes] float32."""
    channels, kernel, stride = self.stem_layer
    inputs = nn.scaled(channels, self.width)
    width = nn.gated(self, 'stem', inputs)
    m = nn.ConvBn(width, kernel, stride, train=train, name='stem_conv')(
      nn.image(x)
    )
    m = nn.act(nn.relu, nn.Gate(name='stem')(m))
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
