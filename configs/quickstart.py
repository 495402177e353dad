r"""The demo: a small VGG learns its own architecture on 8x8 digits.

  python -m dnal_jax.main --config=configs/quickstart.py \
    --config.target.macs=0.1 --workdir=runs/demo

Half a minute on 2 CPU cores. Without a target the search is the paper's. The
schedule and the penalty are ours, as the paper has no digits. The penalty acts
once per step; this search has 170 steps instead of thousands, so its penalty is
about a hundred times as large (docs/method.md).
"""

from ml_collections import ConfigDict

from dnal_jax.recipes import recipe


def get_config(variant: str = '') -> ConfigDict:
  config = recipe.base_config(
    'vgg7_digits',
    {
      'name': 'digits',
      'image': 8,
      'classes': 10,
      'mean': (0.3053,),  # of the pixels of the training split
      'std': (0.3760,),
      'validation': 297,
      'crop_pad': 1,
      'flip': False,  # a mirrored digit is not a digit
    },
  )
  config.batch_size = 64
  config.eval_batch_size = 256
  config.tensorboard = (
    False  # importing TensorFlow would take longer than a stage
  )
  recipe.add_stages(
    config,
    variant,
    penalty=0.04,
    weight_decay=5e-4,
    warmup=(10, recipe.cosine(0.05, end=1 / 2)),
    search=10,
    finetune=(30, recipe.cosine(0.05)),
    baseline=(40, recipe.cosine(0.05)),
  )
  return config
