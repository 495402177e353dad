r"""Prepares a data set of tensorflow-datasets, once, for all runs.

python -m dnal_jax.prepare --dataset=imagenet2012 --data_dir=DIR \
  --manual_dir=TARS
"""

from collections.abc import Sequence

from absl import flags

from dnal_jax import cli, errors
from dnal_jax.data import tfds_sets

_DATASET = flags.DEFINE_string('dataset', None, 'Its name.')
_DATA_DIR = flags.DEFINE_string(
  'data_dir', None, 'Where to put it; else TFDS_DATA_DIR.'
)
_MANUAL_DIR = flags.DEFINE_string(
  'manual_dir', None, 'What was got by hand; else DATA_DIR/downloads/manual.'
)


def body(argv: Sequence[str]) -> None:
  del argv
  if not _DATASET.value:
    raise errors.UserError('give --dataset=NAME, such as imagenet2012')
  path = tfds_sets.prepare(_DATASET.value, _DATA_DIR.value, _MANUAL_DIR.value)
  print(f"'{_DATASET.value}' is prepared in '{path}'")


if __name__ == '__main__':
  cli.run(body)
