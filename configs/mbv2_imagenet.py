r"""MobileNetV2 on ImageNet-1K.

  python -m dnal_jax.main \
    --config=configs/mbv2_imagenet.py --workdir=DIR

  --config.penalty=7e-5: the other row of the table
  --config=configs/mbv2_imagenet.py:baseline: trained without gates

Published, not measured by us (macs, params, top-1, top-5):

  baseline       300.79 M, 3.50 M, 71.52 %, 90.15 %
  lambda 6e-5    217.24 M, 2.87 M, 71.02 %, 89.96 %
  lambda 7e-5    207.25 M, 2.78 M, 70.91 %, 89.79 %

Cost: 6 x 0.301 G macs x 1.27 M images x 180 epochs at 10 TFLOP/s = 11 hours of
one accelerator, 8 for the baseline. Computed, not measured. Assumes that a
step costs three forward passes of 2 operations per mac, that steps of all
stages cost as much as in the warm-up, and a rate of a twentieth of a TPU v5e's
peak of 197 TFLOP/s with --config.compute_dtype=bfloat16, because depthwise
convolutions are limited by memory bandwidth.

All numbers are those of the paper's code except the baseline's learning rate:
the cosine of the fine-tuning (0.1, over 120 epochs) from its start.
"""

from ml_collections import ConfigDict

from configs import imagenet, recipe


def get_config(variant: str = '') -> ConfigDict:
  return imagenet.config(
    'mobilenet_v2',
    variant=variant,
    penalty=6e-5,
    batch_size=256,
    crop_scale=(0.2, 1.0),
    weight_decay=4e-5,
    warmup=(80, recipe.cosine(0.1, horizon=160)),
    finetune=(90, recipe.cosine(0.1, horizon=120, start=30)),
    baseline=(120, recipe.cosine(0.1, horizon=120)),
  )
