r"""VGG16 with BatchNorm on ImageNet-1K.

  python -m dnal_jax.main \
    --config=configs/vgg16_imagenet.py --workdir=DIR

  --config=configs/vgg16_imagenet.py:baseline: full network, no search
  --config.target.macs=0.5: half of the macs, in place of lambda (ours)

Published for lambda = 1e-4, the only row: 4.69 G macs, 77.05 M params, top-1
69.80 %, top-5 89.42 % (baseline 15.47 G, 138.37 M, 76.13 %, 92.86 %; this top-1
is doubtful: elsewhere it is ResNet50's). Not measured by us.

Cost: 6 x 15.47 G macs x 1.27 M images x 110 epochs at 50 TFLOP/s = 72 hours on
one accelerator, 59 for the baseline. Estimated, not measured: it assumes that
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
    'vgg16',
    variant=variant,
    penalty=1e-4,
    batch_size=128,
    crop_scale=(0.08, 1.0),
    weight_decay=1e-4,
    warmup=(30, recipe.steps(0.01)),
    finetune=(70, recipe.steps(0.01, 10 / 70, 40 / 70)),
    baseline=(90, recipe.steps(0.01, 1 / 3, 2 / 3)),
  )
