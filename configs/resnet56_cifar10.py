r"""ResNet56 on CIFAR-10.

  python -m dnal_jax.main \
    --config=configs/resnet56_cifar10.py --workdir=DIR

  --config.penalty=5e-5: another lambda
  --config=configs/resnet56_cifar10.py:baseline: full network, no search
  --config.target.macs=0.5: half of the macs, in place of lambda (ours)

Published for lambda = 1e-4: 36.94 M macs, 0.25 M params,
top-1 93.20 % (baseline 125.49 M, 0.85 M, 94.15 %).
Not measured by us yet.
Schedule: ours, see dnal_jax/recipes/small_images.py.
Weight decay 1e-4: arXiv 1512.03385, section 4.2.
"""

from ml_collections import ConfigDict

from dnal_jax.recipes import small_images


def get_config(variant: str = '') -> ConfigDict:
  return small_images.cifar10(
    'resnet56_cifar', weight_decay=1e-4, variant=variant
  )
