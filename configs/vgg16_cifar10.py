r"""VGG16 on CIFAR-10.

  python -m dnal_jax.main \
    --config=configs/vgg16_cifar10.py --workdir=DIR

  --config.penalty=5e-5: another lambda
  --config=configs/vgg16_cifar10.py:baseline: full network, no search
  --config.target.macs=0.5: half of the macs, in place of lambda (ours)

Published for lambda = 1e-4: 161.97 M macs, 2.10 M params,
top-1 93.75 % (baseline 313.47 M, 14.99 M, 93.77 %).
Not measured by us yet.
Schedule: ours, see dnal_jax/recipes/small_images.py.
Weight decay 5e-4: usual for VGG on CIFAR.
"""

from ml_collections import ConfigDict

from dnal_jax.recipes import small_images


def get_config(variant: str = '') -> ConfigDict:
  return small_images.cifar10('vgg16_cifar', weight_decay=5e-4, variant=variant)
