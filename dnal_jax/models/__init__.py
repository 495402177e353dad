"""Every network by name, ours and those that a user registers.

A variant of ours is a `partial` of its family's class.
"""

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple, Protocol

from dnal_jax import compact, errors, layers, trees
from dnal_jax.models import limits, mobilenet_v2, proxyless, resnet, vgg


class Network(Protocol):
  """What is asked of a network: a flax module built of `layers`."""

  classes: int
  width: float  # multiplies every width but `classes`
  keep: layers.Keep

  @property
  def min_image(self) -> int:
    """Smallest image side, in pixels."""
    ...

  def init(self, rngs: Any, *args: Any, **kwargs: Any) -> Any: ...
  def apply(self, variables: Any, *args: Any, **kwargs: Any) -> Any: ...


class Variant(NamedTuple):
  """A network and the images and classes it was published for."""

  build: Callable[..., Network]  # (classes=, width=, keep=)
  image: int  # side in pixels; three channels
  classes: int


_VGG16 = (64,) * 2, (128,) * 2, (256,) * 3, (512,) * 3, (512,) * 3
_MOBILENET_V2 = (
  (1, 16, 1, 1),
  (6, 24, 2, 2),
  (6, 32, 3, 2),
  (6, 64, 4, 2),
  (6, 96, 3, 1),
  (6, 160, 3, 2),
  (6, 320, 1, 1),
)
# The CIFAR form's second stage keeps its resolution.
_MOBILENET_V2_CIFAR = (_MOBILENET_V2[0], (6, 24, 2, 1), *_MOBILENET_V2[2:])
_RESNET_CIFAR = partial(
  resnet.ResNet,
  block=resnet.BasicBlock,
  features=(16, 32, 64),
  stem_layer=(16, 3, 1),
  stem_pool=False,
)

NETWORKS = {
  'vgg16': Variant(
    partial(vgg.Vgg, stages=_VGG16, hidden=(4096, 4096)), 224, 1000
  ),
  'vgg16_cifar': Variant(
    partial(vgg.Vgg, stages=_VGG16, hidden=(512,)), 32, 10
  ),
  'resnet50': Variant(
    partial(
      resnet.ResNet,
      block=resnet.Bottleneck,
      blocks=(3, 4, 6, 3),
      features=(256, 512, 1024, 2048),
      stem_layer=(64, 7, 2),
      stem_pool=True,
    ),
    224,
    1000,
  ),
  'resnet56_cifar': Variant(partial(_RESNET_CIFAR, blocks=(9, 9, 9)), 32, 10),
  'mobilenet_v2': Variant(
    partial(
      mobilenet_v2.MobileNetV2,
      stages=_MOBILENET_V2,
      stem_stride=2,
      expand_all=False,
      shortcut_conv=False,
    ),
    224,
    1000,
  ),
  'mobilenet_v2_cifar': Variant(
    partial(
      mobilenet_v2.MobileNetV2,
      stages=_MOBILENET_V2_CIFAR,
      stem_stride=1,
      expand_all=True,
      shortcut_conv=True,
    ),
    32,
    10,
  ),
  'proxyless': Variant(
    partial(
      proxyless.Proxyless,
      stages=(
        (24, 4, 2),
        (40, 4, 2),
        (80, 4, 2),
        (96, 4, 1),
        (192, 4, 2),
        (320, 1, 1),
      ),
    ),
    224,
    1000,
  ),
  # Small enough to learn 8x8 digits in a minute on a CPU.
  'vgg7_digits': Variant(
    partial(vgg.Vgg, stages=((32, 32), (64, 64), (128, 128)), hidden=()), 8, 10
  ),
  'resnet8_digits': Variant(partial(_RESNET_CIFAR, blocks=(1, 1, 1)), 8, 10),
  'mobilenet_v2_digits': Variant(
    partial(
      mobilenet_v2.MobileNetV2,
      stages=((1, 8, 1, 1), (4, 16, 2, 2), (4, 24, 2, 1)),
      stem_stride=1,
      expand_all=True,
      shortcut_conv=True,
      stem_channels=16,
      last_channels=64,
    ),
    8,
    10,
  ),
  'proxyless_digits': Variant(
    partial(proxyless.Proxyless, stages=((16, 2, 2), (24, 1, 1))), 8, 10
  ),
}


_REGISTERED: dict[str, Variant] = {}  # by users


def get(name: str) -> Variant:
  """The variant of that name.

  Raises:
    UserError: no network has that name.
  """
  known = {**_REGISTERED, **NETWORKS}
  if name not in known:
    raise errors.UserError(
      f'unknown network {name!r}{errors.did_you_mean(name, known)}. One of your'
      f' own is known after models.register({name!r}, ...)'
    )
  return known[name]


def register(name: str, variant: Variant) -> None:
  """Makes a network of one's own known by name to configs, `load` and all
  else, in this process.

  A name that was registered before is replaced, as when a notebook's cell is
  run again.

  Raises:
    UserError: the name is one of ours, or the network is not as a run needs
      it; what is wrong in a network's own code raises from there.
  """
  if name in NETWORKS:
    raise errors.UserError(
      f"'{name}' is a network of ours; register yours under another name"
    )
  if len(name) > limits.NAME:  # else no file with it would be read
    raise errors.UserError(
      f"'{name}' is too long a name; make it {limits.NAME} characters at most"
    )
  told = _unfit(variant)
  if told:
    raise errors.UserError(f"network '{name}' {told}")
  _REGISTERED[name] = variant


def _unfit(variant: Variant) -> str | None:
  """What keeps a run from training, cutting and counting the network."""
  fields = {'classes': variant.classes, 'width': 1.0, 'keep': layers.NO_KEEP}
  try:
    net = variant.build(**fields)
  except TypeError as error:
    told = f'cannot be built with {", ".join(fields)} ({error})'
    return f'{told}: make them fields of its class'
  try:
    hash(net)  # as jit wants it
  except TypeError:
    return 'has a field that cannot be hashed: use tuples, not lists or arrays'
  if not hasattr(net, 'min_image'):
    return 'has no min_image: add it, the smallest image side in pixels'
  image_shape = (variant.image, variant.image, 3)
  walk = compact.walk(net, image_shape)
  if 'head/logits' not in walk.sites:
    return "has no classifier: end it with layers.Head(..., name='head')"
  if not walk.gates:
    return 'has no layers.Gate, so there is nothing to search'
  for path in trees.flatten(walk.shapes['params']):
    owner = path.rpartition('/')[0].removesuffix('/bn')
    if owner not in walk.sites and not owner.startswith('head/'):
      return (
        f"has the parameter '{path}', which can be neither cut nor counted: use"
        ' layers.ConvBn and layers.Head for all that is trained'
      )
  last = {gate: ids[-1:] for gate, ids in walk.gates.items()}
  thin = compact.walk(compact.with_keep(net, last), image_shape)
  for gate, ids in last.items():
    if thin.gates.get(gate) != ids:
      return (
        f"does not cut gate '{gate}': make its width with layers.gated or"
        ' layers.chain, and hand keep=self.keep to the modules inside'
      )
  return None
