"""VGG with BatchNorm (1409.1556): convolutions, pooling, linear layers.

B batch, H height, W width, C channels. A closed channel of one convolution
leaves the inputs of the next; those of the last leave the first linear layer,
once per position of the final map.
"""

from flax import linen
import jax

from dnal_jax import nn


class Vgg(linen.Module):
  """Stages of 3x3 convolutions (with bias), each ended by a 2x2 max-pool."""

  classes: int
  stages: tuple[tuple[int, ...], ...]
  hidden: tuple[int, ...]  # widths of the head's hidden layers
  width: float = 1.0  # multiplies every width but `classes`
  keep: nn.Keep = nn.NO_KEEP

  @property
  def min_image(self) -> int:
    """Smallest image side, in pixels, that leaves one position at the end."""
    return 2 ** len(self.stages)

  @linen.compact
  def __call__(self, x: jax.Array, train: bool = False) -> jax.Array:
    """[B, H, W, C] float32 -> logits [B, classes] float32."""
    m, n = nn.image(x), x.shape[-1]
    for i, stage in enumerate(self.stages, 1):
      for j, channels in enumerate(stage, 1):
        n = nn.scaled(channels, self.width)
        width = nn.gated(self, f'gate{i}_{j}', n)
        m = nn.ConvBn(width, 3, bias=True, train=train, name=f'conv{i}_{j}')(m)
        m = nn.act(nn.relu, nn.Gate(name=f'gate{i}_{j}')(m))
      m = nn.max_pool(m, 2)
    hidden = tuple(nn.scaled(h, self.width) for h in self.hidden)
    head = nn.Head(self.classes, hidden, train=train, name='head')
    return head(nn.flatten(m, n))
