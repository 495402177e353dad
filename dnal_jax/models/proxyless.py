"""The ProxylessNAS supernet (1812.00332) whose candidates are summed.

B batch, H height, W width, C channels. Every layer has six candidates, inverted
residuals of kernel 3, 5 or 7 and expansion 3 or 6, and is their plain sum: no
softmax, no sampling, which is DNAL's reading of it (Guo et al. 2022). Each
candidate has gates of its own, so the search thins them or removes them; a
layer without any is its shortcut.
"""

from collections.abc import Mapping
from functools import partial
import math

from flax import linen as nn
import jax

from dnal_jax import layers
from dnal_jax.models import mobilenet_v2

# {name: (kernel, expansion)}
CANDIDATES = {
  f'{kernel}x{kernel}_e{expansion}': (kernel, expansion)
  for kernel in (3, 5, 7)
  for expansion in (3, 6)
}
_EPSILON = 1e-3


class MixedBlock(nn.Module):
  """Sum of the six candidates, and of the input where shapes allow."""

  inputs: int
  features: int
  stride: int
  keep: layers.Keep
  train: bool

  @nn.compact
  def __call__(self, m: layers.Features) -> layers.Features:
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
    return layers.add(*candidates, shortcut=m if identity else None)


class Proxyless(nn.Module):
  """Stem, a plain block, mixed blocks, 1x1 convolution, average, classifier."""

  classes: int
  # Rows of (channels, blocks, stride of the first).
  stages: tuple[tuple[int, int, int], ...]
  width: float = 1.0  # multiplies every width but `classes`
  keep: layers.Keep = layers.NO_KEEP

  @property
  def min_image(self) -> int:
    """Smallest image side, in pixels: the total stride."""
    return 2 * math.prod(stride for *_, stride in self.stages)

  @nn.compact
  def __call__(self, x: jax.Array, train: bool = False) -> jax.Array:
    """[B, H, W, C] float32 -> logits [B, classes] float32."""
    conv = partial(layers.ConvBn, train=train, epsilon=_EPSILON)
    stem = layers.scaled(32, self.width)
    inputs = layers.scaled(16, self.width)
    # The first block's depthwise convolution alone reads the stem.
    width = layers.gated(self, 'block0/hidden', stem)
    m = conv(width, 3, 2, name='stem_conv')(layers.image(x))
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
    )(layers.act(nn.relu6, m))
    for i, (channels, blocks, stride) in enumerate(self.stages, 1):
      features = layers.scaled(channels, self.width)
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
    last = layers.gated(self, 'last', layers.scaled(1280, self.width))
    m = layers.Gate(name='last')(conv(last, 1, name='last_conv')(m))
    m = layers.average(layers.act(nn.relu6, m))
    head = layers.Head(
      self.classes, train=train, kernel_init=_uniform_fan_in, name='head'
    )
    return head(m)


def survivors(
  before: Mapping[str, layers.Ids], after: Mapping[str, layers.Ids]
) -> dict[str, list[str]]:
  """{block: the candidates left in it, as '5x5 e6 112/384'} from the channels
  behind each gate of the whole and of the learned network.

  The numbers are hidden channels, kept and in all. A candidate whose hidden
  channels are all closed and whose projection is not adds a constant (0/384);
  one whose projection is closed has vanished.
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


# U(-1/sqrt(fan_in), 1/sqrt(fan_in)), of variance 1/3 of 1/fan_in.
_uniform_fan_in = nn.initializers.variance_scaling(1 / 3, 'fan_in', 'uniform')
