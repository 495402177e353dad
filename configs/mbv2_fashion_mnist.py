r"""MobileNetV2 on Fashion-MNIST.

  python -m dnal_jax.main \
    --config=configs/mbv2_fashion_mnist.py --workdir=DIR

  --config.penalty=5e-5: another lambda
  --config=configs/mbv2_fashion_mnist.py:baseline: full network, no search
  --config.target.macs=0.5: half of the macs, in place of lambda (ours)

Not in the paper, and not measured by us yet.
Schedule: ours, see dnal_jax/recipes/small_images.py.
Weight decay 1e-4, ours: between the 4e-5 of ImageNet and 5e-4.
"""

from ml_collections import ConfigDict

from dnal_jax.recipes import small_images


def get_config(variant: str = '') -> ConfigDict:
  return small_images.fashion_mnist(
    'mobilenet_v2_cifar', weight_decay=1e-4, variant=variant
  )
