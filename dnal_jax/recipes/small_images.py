"""The part that all configs for 32x32 images of ten classes share.

The paper has results on CIFAR-10 but no settings, so the schedule is ours. It
has the proportions of the paper's MobileNetV2 on ImageNet (80 + 10 + 90
epochs): a warm-up of 60 epochs over half of a cosine of 120, a search of 10,
and a fine-tuning of 90 that starts a quarter down the curve. Batch size 128,
learning rate 0.1, crops after padding by 4 and flips are usual for CIFAR since
arXiv 1512.03385, section 4.2.
"""

from ml_collections import ConfigDict
from ml_collections.config_dict import placeholder

from dnal_jax.recipes import recipe


def cifar10(network: str, weight_decay: float, variant: str = '') -> ConfigDict:
  """60 + 10 + 90 epochs on 45,000 images; 150 for the baseline."""
  data = {
    'name': 'cifar10',
    # Per channel of the training split; the usual figures.
    'mean': (0.4914, 0.4822, 0.4465),
    'std': (0.2470, 0.2435, 0.2616),
  }
  return _config(network, weight_decay, data, variant)


def fashion_mnist(
  network: str, weight_decay: float, variant: str = ''
) -> ConfigDict:
  """The same schedule on 55,000 gray images of 28x28 pixels, padded to 32x32
  and repeated in 3 channels."""
  data = {
    'name': 'fashion_mnist',
    # Of the 28x28 pixels of the training split, computed from the data.
    'mean': (0.2860, 0.2860, 0.2860),
    'std': (0.3530, 0.3530, 0.3530),
  }
  return _config(network, weight_decay, data, variant)


def _config(network, weight_decay, data, variant) -> ConfigDict:
  config = recipe.base_config(
    network,
    {
      **data,
      'image': 32,
      'classes': 10,
      'validation': 5000,
      'crop_pad': 4,
      'flip': True,
      'dir': placeholder(str),  # None: TFDS_DATA_DIR
      'train_limit': placeholder(int),  # None: all images
    },
  )
  config.batch_size = 128
  config.eval_batch_size = 500
  recipe.add_stages(
    config,
    variant,
    # The largest of the paper's seven values (1e-5 to 5e-4) at which all three
    # of its CIFAR networks stay within 1 point of their baselines.
    penalty=1e-4,
    weight_decay=weight_decay,
    warmup=(60, recipe.cosine(0.1, end=1 / 2)),
    search=10,
    finetune=(90, recipe.cosine(0.1, begin=30 / 120)),
    baseline=(150, recipe.cosine(0.1)),
  )
  return config
