r"""The ProxylessNAS supernet on ImageNet-1K.

All candidates of a block are computed and summed.

  python -m dnal_jax.main \
    --config=configs/proxyless_imagenet.py --workdir=DIR

  --config=configs/proxyless_imagenet.py:baseline: full supernet, no search
  --config.target.macs=0.5: half of the macs, in place of lambda (ours)

Published for lambda = 6e-5, the only row: 3.6 M params, top-1 75.0 %, top-5
92.5 % (baseline 16.0 M, 75.7 %, 92.5 %). Not measured by us.

`python -m dnal_jax.summary --architecture=DIR/architecture.json` prints the
candidates that are left in each block.

Cost: 6 x 2.26 G macs x 1.27 M images x 220 epochs at 10 TFLOP/s = 105 hours on
one accelerator, 72 for the baseline. Estimated, not measured: it assumes that
a step of any stage costs three forward passes of 2 operations per mac, at a
twentieth of the peak of a TPU v5e (197 TFLOP/s with
--config.compute_dtype=bfloat16), because memory bandwidth limits depthwise
convolutions.

All numbers are those of the authors' code, except the learning rate of the
baseline (ours): the cosine of the fine-tuning, 0.05 over 150 epochs, from its
start.
"""

from ml_collections import ConfigDict

from dnal_jax.recipes import imagenet, recipe


def get_config(variant: str = '') -> ConfigDict:
  return imagenet.config(
    'proxyless',
    variant=variant,
    penalty=6e-5,
    batch_size=96,
    crop_scale=(0.2, 1.0),
    weight_decay=4e-5,
    warmup=(100, recipe.cosine(0.05, end=100 / 150)),
    finetune=(110, recipe.cosine(0.05, begin=40 / 150)),
    baseline=(150, recipe.cosine(0.05)),
  )
