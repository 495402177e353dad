"""The networks that come with the library, by name.

The `build` of a variant is a `partial` of its family's class.
"""

from functools import partial

from dnal_jax.models import mobilenet_v2, proxyless, resnet, vgg
from dnal_jax.models.network import Variant

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

# For CIFAR, the second stage has stride 1.
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
  'resnet20_cifar': Variant(partial(_RESNET_CIFAR, blocks=(3, 3, 3)), 32, 10),
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
  # Small enough to learn 8x8 digits on a CPU in a minute.
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
