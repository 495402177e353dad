r"""MobileNetV2 on CIFAR-10.

  python -m dnal_jax.main \
    --config=configs/mbv2_cifar10.py --workdir=DIR

  --config.penalty=5e-5: another lambda
  --config=configs/mbv2_cifar10.py:baseline: full network, no search
  --config.target.macs=0.5: half of the macs, in place of lambda (ours)

Published for lambda = 1e-4: 36.63 M macs, 0.65 M params,
top-1 94.01 % (baseline 91.17 M, 2.30 M, 94.31 %).
Not measured by us yet.
Schedule: ours, see dnal_jax/recipes/small_images.py.
Weight decay 1e-4, ours: between the 4e-5 of ImageNet and 5e-4.
"""

from ml_collections import ConfigDict

from dnal_jax.recipes import small_images


def get_config(variant: str = '') -> ConfigDict:
  return small_images.cifar10(
    'mobilenet_v2_cifar', weight_decay=1e-4, variant=variant
  )
