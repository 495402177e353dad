r"""ResNet50 on ImageNet-1K.

  python -m dnal_jax.main \
    --config=configs/resnet50_imagenet.py --workdir=DIR

  --config.penalty=6e-5: another row of the table
  --config=configs/resnet50_imagenet.py:baseline: full network, no search
  --config.target.macs=0.5: half of the macs, in place of lambda (ours)

Published, not measured by us (macs, params, top-1, top-5):

  baseline       4.09 G, 25.55 M, 75.19 %, 92.56 %
  lambda 5e-5    2.07 G, 15.34 M, 74.07 %, 92.02 %
  lambda 6e-5    1.75 G, 12.75 M, 73.65 %, 91.74 %
  lambda 7e-5    1.44 G, 10.94 M, 72.86 %, 91.34 %
  lambda 1e-4    0.88 G,  7.18 M, 70.17 %, 89.78 %

Cost: 6 x 4.09 G macs x 1.27 M images x 110 epochs at 50 TFLOP/s = 19 hours on
one accelerator, 16 for the baseline. Estimated, not measured: it assumes that
a step of any stage costs three forward passes of 2 operations per mac, at a
quarter of the peak of a TPU v5e (197 TFLOP/s with
--config.compute_dtype=bfloat16).

All numbers are those of the authors' code, except the learning rate of the
baseline: divided by 10 every 30 of 90 epochs, as in PyTorch's examples.
"""

from ml_collections import ConfigDict

from dnal_jax.recipes import imagenet, recipe


def get_config(variant: str = '') -> ConfigDict:
  return imagenet.config(
    'resnet50',
    variant=variant,
    penalty=5e-5,
    batch_size=256,
    crop_scale=(0.08, 1.0),
    weight_decay=1e-4,
    warmup=(30, recipe.steps(0.1)),
    finetune=(70, recipe.steps(0.1, 10 / 70, 40 / 70)),
    baseline=(90, recipe.steps(0.1, 1 / 3, 2 / 3)),
  )
