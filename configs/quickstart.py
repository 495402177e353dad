"""The demo: searches the widths of a small VGG on 8x8 digits.

  python -m dnal_jax.main --config=configs/quickstart.py --workdir=runs/demo

Takes half a minute on 2 CPU cores. The schedule and the penalty are ours: the
paper does not use digits. The penalty is some hundred times larger than the
paper's because it acts once per step, and this search has 170 steps instead of
thousands (README, "Lambda").
"""

from ml_collections import ConfigDict

from configs import recipe


def get_config(variant: str = '') -> ConfigDict:
  config = recipe.new(
    'vgg7_digits',
    {
      'name': 'digits',
      'image': 8,
      'classes': 10,
      'mean': (0.3053,),  # of the training split's pixels
      'std': (0.3760,),
      'validation': 297,
      'crop_pad': 1,
      'flip': False,  # a mirrored digit is not a digit
    },
  )
  config.batch_size = 64
  config.eval_batch_size = 256
  config.tensorboard = False  # importing TensorFlow takes longer than a stage
  config.penalty = 0.04  # lambda
  config.order = recipe.order(variant)
  config.stages = recipe.stages(
    config,
    weight_decay=5e-4,
    warmup=(10, recipe.cosine(0.05, horizon=20)),
    search=10,
    finetune=(30, recipe.cosine(0.05, horizon=30)),
    baseline=(40, recipe.cosine(0.05, horizon=40)),
  )
  return config
