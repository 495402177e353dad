r"""MobileNetV2 on ImageNet-1K.

  python -m dnal_jax.main \
    --config=configs/mbv2_imagenet.py --workdir=DIR

  --config.penalty=7e-5: the other row of the table
  --config=configs/mbv2_imagenet.py:baseline: full network, no search
  --config.target.macs=0.5: half of the macs, in place of lambda (ours)

Published, not measured by us (macs, params, top-1, top-5):

  baseline       300.79 M, 3.50 M, 71.52 %, 90.15 %
  lambda 6e-5    217.24 M, 2.87 M, 71.02 %, 89.96 %
  lambda 7e-5    207.25 M, 2.78 M, 70.91 %, 89.79 %

Cost: 6 x 0.301 G macs x 1.27 M images x 180 epochs at 10 TFLOP/s = 11 hours on
one accelerator, 8 for the baseline. Estimated, not measured: it assumes that
a step of any stage costs three forward passes of 2 operations per mac, at a
twentieth of the peak of a TPU v5e (197 TFLOP/s with
--config.compute_dtype=bfloat16), because memory bandwidth limits depthwise
convolutions.

All numbers are those of the authors' code, except the learning rate of the
baseline (ours): the cosine of the fine-tuning, 0.1 over 120 epochs, from its
start.
"""

from ml_collections import ConfigDict

from dnal_jax.recipes import imagenet, recipe


def get_config(variant: str = '') -> ConfigDict:
  return imagenet.config(
    'mobilenet_v2',
    variant=variant,
    penalty=6e-5,
    batch_size=256,
    crop_scale=(0.2, 1.0),
    weight_decay=4e-5,
    warmup=(80, recipe.cosine(0.1, end=1 / 2)),
    finetune=(90, recipe.cosine(0.1, begin=30 / 120)),
    baseline=(120, recipe.cosine(0.1)),
  )
