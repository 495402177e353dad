"""The part that all ImageNet-1K configs share.

As in the authors' code: crops, flip, 224 pixels, short side 256 in evaluation,
the usual mean and standard deviation, a search of 10 epochs. Deviation: 10,000
images of the training split are held out to make choices with, so that the
50,000 images of the validation split are used once, at the end.

To train on your own images, train/CLASS/*.jpg and val/CLASS/*.jpg in DIR:

  --config.data.folder=DIR

If there are few of them, hold out fewer images (data.validation).
"""

from collections.abc import Mapping
from typing import Any

from ml_collections import ConfigDict
from ml_collections.config_dict import placeholder

from dnal_jax.recipes import recipe


def config(
  network: str,
  *,
  variant: str,
  penalty: float,
  batch_size: int,
  crop_scale: tuple[float, float],
  weight_decay: float,
  warmup: tuple[int, Mapping[str, Any]],
  finetune: tuple[int, Mapping[str, Any]],
  baseline: tuple[int, Mapping[str, Any]],
) -> ConfigDict:
  """The three stages, or the baseline, on 1,271,167 images."""
  config = recipe.base_config(
    network,
    {
      'name': 'imagenet2012',
      'dir': placeholder(str),  # None: TFDS_DATA_DIR
      'folder': placeholder(str),  # of images, replaces `name`
      'test_split': 'validation',  # its name in tensorflow-datasets
      'image': 224,
      'classes': placeholder(int),  # None: as many as the data has
      'mean': (0.485, 0.456, 0.406),
      'std': (0.229, 0.224, 0.225),
      'validation': 10_000,
      'train_limit': placeholder(int),  # None: all images
      'crop_scale': crop_scale,
      'short_side': 256,
      'flip': True,
      'skip_broken': False,
    },
  )
  config.batch_size = batch_size
  config.eval_batch_size = 256
  config.checkpoint_steps = 1000
  recipe.add_stages(
    config,
    variant,
    penalty=penalty,
    weight_decay=weight_decay,
    warmup=warmup,
    search=10,
    finetune=finetune,
    baseline=baseline,
  )
  return config
