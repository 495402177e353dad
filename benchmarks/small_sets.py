"""Small data sets of photographs in three classes, as users have them."""

import pathlib

from etils import epath
import numpy as np
from photographs import jpeg, photographs

from dnal_jax.data import Data, crops

CLASSES = ('ant', 'bee', 'cow')
TRAIN, TEST = 26, 8  # images
STREAMED = Data(
  name='',
  mean=(0.5,) * 3,
  std=(0.5,) * 3,
  image=32,
  classes=len(CLASSES),
  validation=4,
  short_side=36,
)
RESIDENT = Data(
  name='mnist',
  mean=(0.5,),
  std=(0.5,),
  image=28,
  classes=len(CLASSES),
  validation=4,
)


def write_folder(root: pathlib.Path) -> None:
  """train/CLASS/*.jpg and val/CLASS/*.jpg."""
  rng = np.random.default_rng(0)
  for i in range(TRAIN + TEST):
    directory = root / ('train' if i < TRAIN else 'val') / CLASSES[i % 3]
    directory.mkdir(parents=True, exist_ok=True)
    width, height = (int(n) for n in rng.integers(20, 90, 2))
    data = jpeg(i, width, height, rng=rng)
    (directory / f'{i}.jpg').write_bytes(data)


def write_records(root: pathlib.Path, name: str, channels: int) -> None:
  """A data set as tensorflow-datasets prepares it, in `root`/NAME/3.0.1: two
  files of records to train on, one to test; images of 28 x 28 pixels."""
  tf = crops.import_tensorflow()
  import tensorflow_datasets as tfds

  directory = root / name / '3.0.1'
  directory.mkdir(parents=True)
  features = tfds.features.FeaturesDict(
    {
      'image': tfds.features.Image(shape=(28, 28, channels)),
      'label': tfds.features.ClassLabel(names=CLASSES),
    }
  )
  images = iter(range(TRAIN + TEST))
  infos = []
  for split, lengths in (('train', (16, TRAIN - 16)), ('test', (TEST,))):
    for shard, length in enumerate(lengths):
      file = f'{name}-{split}.tfrecord-{shard:05d}-of-{len(lengths):05d}'
      with tf.io.TFRecordWriter(str(directory / file)) as writer:
        for i in (next(images) for _ in range(length)):
          pixels = np.asarray(photographs()[i % 6].resize((28, 28)))
          pixels = np.roll(pixels, i, axis=1)[..., :channels]
          example = {'image': pixels, 'label': i % len(CLASSES)}
          writer.write(
            features.serialize_example(features.encode_example(example))
          )
    template = tfds.core.ShardedFileTemplate(
      dataset_name=name,
      data_dir=epath.Path(directory),
      split=split,
      filetype_suffix='tfrecord',
    )
    infos.append(
      tfds.core.SplitInfo(
        name=split,
        shard_lengths=list(lengths),
        num_bytes=1,
        filename_template=template,
      )
    )
  tfds.folder_dataset.write_metadata(
    data_dir=directory, features=features, split_infos=infos
  )
