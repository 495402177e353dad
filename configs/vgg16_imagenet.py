r"""VGG16 with BatchNorm on ImageNet-1K.

  python -m dnal_jax.main \
    --config=configs/vgg16_imagenet.py --workdir=DIR

  --config=configs/vgg16_imagenet.py:baseline: trained without gates

Published for lambda = 1e-4, the only row: 4.69 G macs, 77.05 M params, top-1
69.80 %, top-5 89.42 % (baseline 15.47 G, 138.37 M, 76.13 %, 92.86 %; that top-1
is doubtful: elsewhere it is ResNet50's). Not measured by us.

Cost: 6 x 15.47 G macs x 1.27 M images x 110 epochs at 50 TFLOP/s = 72 hours of
one accelerator, 59 for the baseline. Computed, not measured. Assumes that a
step costs three forward passes of 2 operations per mac, that steps of all
stages cost as much as in the warm-up, and a rate of a quarter of a TPU v5e's
peak of 197 TFLOP/s with --config.compute_dtype=bfloat16.

All numbers are those of the paper's code except the baseline's learning rate:
divided by 10 every 30 epochs, as is common in PyTorch for 90 epochs.
"""

from ml_collections import ConfigDict

from configs import imagenet, recipe


def get_config(variant: str = '') -> ConfigDict:
  return imagenet.config(
    'vgg16',
    variant=variant,
    penalty=1e-4,
    batch_size=128,
    crop_scale=(0.08, 1.0),
    weight_decay=1e-4,
    warmup=(30, recipe.steps(0.01)),
    finetune=(70, recipe.steps(0.01, 10, 40)),
    baseline=(90, recipe.steps(0.01, 30, 60)),
  )
