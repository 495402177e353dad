r"""The ProxylessNAS supernet, its candidates summed, on ImageNet-1K.

  python -m dnal_jax.main \
    --config=configs/proxyless_imagenet.py --workdir=DIR

  --config=configs/proxyless_imagenet.py:baseline: trained without gates

Published for lambda = 6e-5, the only row: 3.6 M params, top-1 75.0 %, top-5
92.5 % (baseline 16.0 M, 75.7 %, 92.5 %). Not measured by us.

`python -m dnal_jax.summary --architecture=DIR/architecture.json` says which
candidates survive in each block.

Cost: 6 x 2.26 G macs x 1.27 M images x 220 epochs at 10 TFLOP/s = 105 hours of
one accelerator, 72 for the baseline. Computed, not measured. Assumes that a
step costs three forward passes of 2 operations per mac, that steps of all
stages cost as much as in the warm-up, and a rate of a twentieth of a TPU v5e's
peak of 197 TFLOP/s with --config.compute_dtype=bfloat16, because depthwise
convolutions are limited by memory bandwidth.

All numbers are those of the paper's code except the baseline's learning rate:
the cosine of the fine-tuning (0.05, over 150 epochs) from its start.
"""

from ml_collections import ConfigDict

from configs import imagenet, recipe


def get_config(variant: str = '') -> ConfigDict:
  return imagenet.config(
    'proxyless',
    variant=variant,
    penalty=6e-5,
    batch_size=96,
    crop_scale=(0.2, 1.0),
    weight_decay=4e-5,
    warmup=(100, recipe.cosine(0.05, horizon=150)),
    finetune=(110, recipe.cosine(0.05, horizon=150, start=40)),
    baseline=(150, recipe.cosine(0.05, horizon=150)),
  )
