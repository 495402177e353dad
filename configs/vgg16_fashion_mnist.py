r"""VGG16 on Fashion-MNIST.

  python -m dnal_jax.main \
    --config=configs/vgg16_fashion_mnist.py --workdir=DIR

  --config.penalty=5e-5: another lambda
  --config=configs/vgg16_fashion_mnist.py:baseline: trained without gates

Not in the paper; measured by us, see RESULTS.md.
Schedule: ours (small_images.py).
Weight decay 5e-4: common for VGG on CIFAR.
"""

from ml_collections import ConfigDict

from configs import small_images


def get_config(variant: str = '') -> ConfigDict:
  return small_images.fashion_mnist(
    'vgg16_cifar', weight_decay=5e-4, variant=variant
  )
