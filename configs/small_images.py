"""What the configs for 32x32 images of ten classes have in common.

The paper gives results on CIFAR-10 but no settings. The schedule is ours, in
the proportions of the paper's MobileNetV2 on ImageNet (80 + 10 + 90 epochs): 60
epochs of warm-up along the first half of a cosine of 120, 10 of search, and 90
of fine-tuning that start after a quarter of such a cosine. Batch size 128,
learning rate 0.1, crops after padding by 4 and flips are common for CIFAR since
1512.03385, section 4.2.
"""

from ml_collections import ConfigDict
from ml_collections.config_dict import placeholder

from configs import recipe


def cifar10(network: str, weight_decay: float, variant: str = '') -> ConfigDict:
  """60 + 10 + 90 epochs on 45,000 images; 150 epochs for the baseline."""
  data = {
    'name': 'cifar10',
    # Of the training split, per channel; the usual figures.
    'mean': (0.4914, 0.4822, 0.4465),
    'std': (0.2470, 0.2435, 0.2616),
  }
  return _config(network, weight_decay, data, variant)


def fashion_mnist(
  network: str, weight_decay: float, variant: str = ''
) -> ConfigDict:
  """As `cifar10` on 55,000 gray 28x28 images, padded to 32x32, 3 channels."""
  data = {
    'name': 'fashion_mnist',
    # Of the training split's 28x28 pixels (computed from the data).
    'mean': (0.2860, 0.2860, 0.2860),
    'std': (0.3530, 0.3530, 0.3530),
  }
  return _config(network, weight_decay, data, variant)


def _config(network, weight_decay, data, variant) -> ConfigDict:
  config = recipe.new(
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
  # lambda: the largest of the paper's seven values, 1e-5 to 5e-4, at which all
  # three CIFAR networks stay within 1 point of their baselines.
  config.penalty = 1e-4
  config.order = recipe.order(variant)
  config.stages = recipe.stages(
    config,
    weight_decay=weight_decay,
    warmup=(60, recipe.cosine(0.1, horizon=120)),
    search=10,
    finetune=(90, recipe.cosine(0.1, horizon=120, start=30)),
    baseline=(150, recipe.cosine(0.1, horizon=150)),
  )
  return config
