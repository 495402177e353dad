"""JPEGs of the real photographs that scikit-image and scikit-learn ship."""

import functools
import io
import pathlib

import numpy as np
from PIL import Image
import skimage.data
from sklearn import datasets

_NAMES = ('astronaut.png', 'chelsea.png', 'coffee.png', 'rocket.jpg')


@functools.cache
def photographs() -> list[Image.Image]:
  """Six RGB photographs whose longer sides have 450 to 640 pixels."""
  folder = pathlib.Path(skimage.data.__file__).parent
  images = [Image.open(folder / name).convert('RGB') for name in _NAMES]
  samples: list[np.ndarray] = datasets.load_sample_images()['images']
  return images + [Image.fromarray(sample) for sample in samples]


def jpeg(
  number: int,
  width: int,
  height: int,
  *,
  rng: np.random.Generator,
  mode: str = 'RGB',
  quality: int = 95,
) -> bytes:
  """JPEG of width x height pixels, a random part of photograph `number` % 6."""
  photograph = photographs()[number % len(photographs())]
  largest = min(photograph.width / width, photograph.height / height)
  share = largest * rng.uniform(0.6, 1.0)
  left = rng.uniform(0, photograph.width - share * width)
  top = rng.uniform(0, photograph.height - share * height)
  part = photograph.resize(
    (width, height),
    Image.Resampling.BICUBIC,
    box=(left, top, left + share * width, top + share * height),
  )
  file = io.BytesIO()
  part.convert(mode).save(file, 'JPEG', quality=quality)
  return file.getvalue()
