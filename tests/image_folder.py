"""A folder of photographs, and sources that stream it."""

import dataclasses

import jax
import numpy as np
from photographs import jpeg, photographs

from dnal_jax.data import Data
from dnal_jax.data.streamed import StreamedSource

CLASSES = ('ant', 'bee', 'cow')
FOLDER = Data(
  name='',
  mean=(0.5,) * 3,
  std=(0.5,) * 3,
  image=32,
  classes=3,
  validation=5,
  flip=True,
  short_side=36,
)


def write_folder(root):
  """26 photographs to train, 7 to test; one gray, one CMYK, one PNG with an
  alpha channel, some smaller than the crop."""
  rng = np.random.default_rng(0)
  for part, images in (('train', 26), ('val', 7)):
    for i in range(images):
      directory = root / part / CLASSES[i % 3]
      directory.mkdir(parents=True, exist_ok=True)
      mode = {3: 'L', 4: 'CMYK'}.get(i, 'RGB')
      data = jpeg(i, *rng.integers(20, 90, 2).tolist(), rng=rng, mode=mode)
      (directory / f'{i}.jpg').write_bytes(data)
  image = photographs()[0].resize((50, 40)).convert('RGBA')
  image.putalpha(90)
  image.save(root / 'train' / 'ant' / 'alpha.png')
  return root


def open_source(folder, *, seed=0, batch_size=4, host=(0, 1), **changes):
  data = dataclasses.replace(FOLDER, folder=str(folder), **changes)
  return StreamedSource.open(
    data, seed=seed, batch_size=batch_size, eval_batch_size=4, host=host
  )


def take(source, first_step, steps):
  """The inputs of so many consecutive steps, as numpy."""
  numbers = range(first_step, first_step + steps)
  taken = [jax.device_get(source.inputs(step, 1)) for step in numbers]
  source.close()
  return taken


def assert_same(a, b):
  jax.tree.map(np.testing.assert_array_equal, a, b)
