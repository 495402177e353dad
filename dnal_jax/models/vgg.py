"""VGG with BatchNorm (1409.1556): convolutions, pooling, linear layers.

B batch, H height, W width, C channels. A channel that is pruned from one
convolution is missing from the inputs of the next; one of the last convolution
from those of the first linear layer, once for each position of the final map.
"""

from flax import linen
import jax

from dnal_jax import nn


class Vgg(linen.Module):
  """Stages of 3x3 convolutions with bias and a 2x2 max-pool; then the head."""

  classes: int
  stages: tuple[tuple[int, ...], ...]  # channels of each convolution
  hidden: tuple[int, ...]  # widths of the head's hidden layers
  width: float = 1.0  # multiplies every width but `classes`
  keep: nn.Keep = nn.KEEP_ALL

  @property
  def min_image(self) -> int:
    """Smallest image side in pixels, which leaves one position at the end."""
    return 2 ** len(self.stages)

  @linen.compact
  def __call__(self, x: jax.Array, train: bool = False) -> jax.Array:
    """[B, H, W, C] float32 -> logits [B, classes] float32."""
    m, n = nn.image(x), x.shape[-1]
    for i, stage in enumerate(self.stages, 1):
      for j, channels in enumerate(stage, 1):
        n = nn.scaled(channels, self.width)
        gate = f'gate{i}_{j}'
        m = nn.ConvBn(
          nn.gated(self, gate, n),
          3,
          bias=True,
          gate=nn.Gate(name=gate),
          train=train,
          name=f'conv{i}_{j}',
        )(m)
        m = nn.act(nn.relu, m)
      m = nn.max_pool(m, 2)
    hidden = tuple(nn.scaled(h, self.width) for h in self.hidden)
    head = nn.Head(self.classes, hidden, train=train, name='head')
    return head(nn.flatten(m, n))
