r"""VGG16 on Fashion-MNIST.

  python -m dnal_jax.main \
    --config=configs/vgg16_fashion_mnist.py --workdir=DIR

  --config.penalty=5e-5: another lambda
  --config=configs/vgg16_fashion_mnist.py:baseline: full network, no search
  --config.target.macs=0.5: half of the macs, in place of lambda (ours)

The paper has no such run; RESULTS.md has what was measured.
Schedule: ours (small_images.py).
Weight decay 5e-4: usual for VGG on CIFAR.
"""

from ml_collections import ConfigDict

from dnal_jax.recipes import small_images


def get_config(variant: str = '') -> ConfigDict:
  return small_images.fashion_mnist(
    'vgg16_cifar', weight_decay=5e-4, variant=variant
  )
