"""The crops of torchvision, written anew from its documentation."""

import numpy as np
from PIL import Image


def torchvision_centre(image, size, short_side):
  """Resize, then CenterCrop, on a PIL image."""
  image = image.convert('RGB')
  short = min(image.size)
  width, height = (short_side * n // short for n in image.size)
  image = image.resize((width, height), Image.Resampling.BILINEAR)
  left, top = round((width - size) / 2), round((height - size) / 2)
  return np.asarray(image.crop((left, top, left + size, top + size)))


def torchvision_window(rng, height, width, scale):
  """RandomResizedCrop.get_params, from its documentation."""
  for _ in range(10):
    area = height * width * rng.uniform(*scale)
    aspect = np.exp(rng.uniform(np.log(3 / 4), np.log(4 / 3)))
    w, h = round(np.sqrt(area * aspect)), round(np.sqrt(area / aspect))
    if 0 < w <= width and 0 < h <= height:
      top = rng.integers(0, height - h + 1)
      return top, rng.integers(0, width - w + 1), h, w
  if width / height < 3 / 4:
    w, h = width, round(width / (3 / 4))
  elif width / height > 4 / 3:
    w, h = round(height * (4 / 3)), height
  else:
    w, h = width, height
  return (height - h) // 2, (width - w) // 2, h, w
