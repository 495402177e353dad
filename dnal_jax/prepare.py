r"""Downloads and converts a data set of tensorflow-datasets, once for all runs.

python -m dnal_jax.prepare --dataset=imagenet2012 --data_dir=DIR \
  --manual_dir=TARS
"""

from collections.abc import Sequence

from absl import flags

from dnal_jax import cli, errors
from dnal_jax.data import tfds_sets

FLAGS = flags.FlagValues()
_DATASET = flags.DEFINE_string(
  'dataset', None, 'Name of the data set (TFDS).', flag_values=FLAGS
)
_DATA_DIR = flags.DEFINE_string(
  'data_dir',
  None,
  'Directory of prepared data sets; by default TFDS_DATA_DIR, else'
  ' ~/tensorflow_datasets.',
  flag_values=FLAGS,
)
_MANUAL_DIR = flags.DEFINE_string(
  'manual_dir',
  None,
  'Directory of archives that were downloaded by hand;'
  ' DATA_DIR/downloads/manual by default.',
  flag_values=FLAGS,
)


def body(argv: Sequence[str]) -> None:
  cli.refuse_arguments(argv)
  if not _DATASET.value:
    raise errors.UserError('give --dataset=NAME, such as imagenet2012')
  path = tfds_sets.prepare(_DATASET.value, _DATA_DIR.value, _MANUAL_DIR.value)
  print(f"'{_DATASET.value}' is prepared in '{path}'")


if __name__ == '__main__':
  cli.main(body, FLAGS)
