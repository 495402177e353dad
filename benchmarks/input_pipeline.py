"""Speed of reading training images, compared with PyTorch's DataLoader.

  pip install -r requirements-bench.txt
  python benchmarks/input_pipeline.py [--images=N] [--workers=N] [--json=FILE]

Measures images per second and core, from JPEG files to batches of 64 crops of
224 x 224 pixels, of

- ours, from an image folder and from the TFRecords of tensorflow-datasets, as
  uint8 on the JAX CPU device (the train step normalises them);
- the torchvision way, written out here: PIL, RandomResizedCrop, flip, tensor,
  normalisation, in the worker processes of a DataLoader;
- decoding of whole images alone, by TensorFlow and by PIL in the same
  DataLoader: the limit of every pipeline that decodes whole images. Ours
  decodes the crop only and, unlike PIL, does not antialias it.

In each round every variant runs once, alone, on the same cores. It reads some
batches untimed, then the same number of timed batches as the others, and stops
before its last batch, so that filling and draining queues is not timed. Files
are in the page cache, so disk reads are not timed either.
"""

import argparse
from collections.abc import Callable, Generator
from functools import partial
import gc
import itertools
import json
import math
import os
import pathlib
import platform
import sys
import tempfile
import time
from typing import Any

# Worker processes import this file: JAX and TensorFlow are imported later.
import numpy as np

try:
  import PIL.Image
  import torch.utils.data  # pyright: ignore[reportMissingImports]
except ImportError as error:
  print(f'{error}: pip install -r requirements-bench.txt', file=sys.stderr)
  sys.exit(2)

BATCH, SIDE, SCALE, VALIDATION = 64, 224, (0.08, 1.0), 8
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
CLASSES = ('ant', 'bee', 'cow', 'dog')
AHEAD = 2  # batches that each worker process prefetches, DataLoader's default
BASELINE = 'torchvision way'
Batches = Generator[Any, None, None]  # nothing runs after it is closed


def write_folder(root: pathlib.Path, images: int) -> list[str]:
  """Writes photographs as train/CLASS/*.jpg, and two of each class to val; 70 %
  have 500 x 375 pixels, the others 375 x 500. Returns the training files."""
  from photographs import jpeg

  rng = np.random.default_rng(0)
  files = []
  for i in range(images + 2 * len(CLASSES)):
    part = 'train' if i < images else 'val'
    size = (500, 375) if rng.random() < 0.7 else (375, 500)
    file = root / part / CLASSES[i % len(CLASSES)] / f'{i}.jpg'
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_bytes(jpeg(i, *size, rng=rng, quality=99))  # 110 kB
    files.append(str(file))
  return files[:images]


def write_tfrecords(folder: pathlib.Path, root: pathlib.Path) -> None:
  """Writes the same files as a tensorflow-datasets data set, 'photographs'."""
  import tensorflow_datasets as tfds

  def examples(part):
    for file in folder.glob(f'{part}/*/*.jpg'):
      example = {'image': file.read_bytes(), 'label': file.parent.name}
      yield file.name, example  # the JPEG bytes are stored unchanged

  image = tfds.features.Image(shape=(None, None, 3), encoding_format='jpeg')
  label = tfds.features.ClassLabel(names=list(CLASSES))
  tfds.disable_progress_bar()
  tfds.dataset_builders.store_as_tfds_dataset(
    'photographs',
    '1.0.0',
    features=tfds.features.FeaturesDict({'image': image, 'label': label}),
    split_datasets={'train': examples('train'), 'test': examples('val')},
    data_dir=root,
  )


def our_source(name: str = '', **where: str):
  """Source of the images of a `folder`, or of the data set `name` in `dir`."""
  from dnal_jax.data import Data, streamed

  options: Any = {'validation': VALIDATION, 'flip': True, **where}
  options |= {'image': SIDE, 'classes': len(CLASSES), 'crop_scale': SCALE}
  data = Data(name, MEAN, STD, **options)
  return streamed.StreamedSource.open(
    data, seed=0, batch_size=BATCH, eval_batch_size=BATCH
  )


def check_stored(source: Any, files: list[str]) -> None:
  """Asserts that the TFRecords have the bytes of the files, not re-encoded."""
  records = source._splits['train'].records
  stored = {hash(records.read(i)[0].numpy()) for i in range(len(files))}
  assert stored == {hash(pathlib.Path(file).read_bytes()) for file in files}


def our_batches(source: Any) -> Batches:
  import jax

  for step in itertools.count():
    yield jax.block_until_ready(source.inputs(step, 1))


def tensorflow_decodes(files: list[str], workers: int) -> Batches:
  """One pixel of each decoded image, by a parallel map on all cores."""
  from dnal_jax.data.crops import import_tensorflow

  tf = import_tensorflow()

  def decode(path):
    # Exact, as in ours and PIL; TensorFlow's default is less accurate.
    return tf.io.decode_jpeg(
      tf.io.read_file(path), channels=3, dct_method='INTEGER_ACCURATE'
    )[0, 0, 0]

  data = tf.data.Dataset.from_tensor_slices(files).shuffle(len(files)).repeat()
  yield from data.map(decode, workers).batch(BATCH).prefetch(tf.data.AUTOTUNE)


def random_window(width: int, height: int) -> tuple[int, int, int, int]:
  """(left, top, width, height) as documented for RandomResizedCrop."""
  for _ in range(10):
    area = width * height * torch.empty(1).uniform_(*SCALE).item()
    logarithm = torch.empty(1).uniform_(math.log(3 / 4), math.log(4 / 3))
    aspect = math.exp(logarithm.item())
    w, h = round(math.sqrt(area * aspect)), round(math.sqrt(area / aspect))
    if 0 < w <= width and 0 < h <= height:
      left = int(torch.randint(width - w + 1, (1,)).item())
      return left, int(torch.randint(height - h + 1, (1,)).item()), w, h
  w, h = min(width, round(height * 4 / 3)), min(height, round(width * 4 / 3))
  return (width - w) // 2, (height - h) // 2, w, h


def torchvision_crop(image: PIL.Image.Image):  # [3, SIDE, SIDE] float32
  image = image.convert('RGB')
  left, top, width, height = random_window(*image.size)
  image = image.crop((left, top, left + width, top + height))
  image = image.resize((SIDE, SIDE), PIL.Image.Resampling.BILINEAR)
  if torch.rand(1).item() < 0.5:
    image = image.transpose(PIL.Image.Transpose.FLIP_LEFT_RIGHT)
  pixels = torch.from_numpy(np.array(image)).permute(2, 0, 1).contiguous()
  mean, std = (torch.tensor(v)[:, None, None] for v in (MEAN, STD))
  return pixels.to(torch.float32).div_(255).sub_(mean).div_(std)


def decoded(image: PIL.Image.Image):
  image.load()
  return image.width


class Photographs(torch.utils.data.Dataset):
  """(example(opened image), label) of every file."""

  def __init__(self, files: list[str], example: Callable):
    self._files, self._example = files, example

  def __len__(self) -> int:
    return len(self._files)

  def __getitem__(self, index: int):
    with PIL.Image.open(self._files[index]) as image:
      return self._example(image), index % len(CLASSES)


def torch_loader(files: list[str], workers: int, batches: int, example: Any):
  """Loader of `batches` shuffled batches during which all workers are busy."""
  dataset: Any = Photographs(files, example)
  images = (batches + AHEAD * workers) * BATCH
  return torch.utils.data.DataLoader(
    dataset,
    BATCH,
    sampler=torch.utils.data.RandomSampler(dataset, num_samples=images),
    num_workers=workers,
    prefetch_factor=AHEAD,
    persistent_workers=True,
    multiprocessing_context='spawn',  # TensorFlow's threads forbid fork
  )


def torch_batches(loader: Any) -> Batches:
  """The loader's batches. When closed, fetches the prefetched batches, so that
  the worker processes are idle until the next round."""
  batches = iter(loader)
  try:
    yield from batches
  finally:
    for _ in batches:
      pass


def rate(batches: Batches, untimed: int, timed: int) -> float:
  """Images per second in `timed` batches after `untimed` ones."""
  for _ in range(untimed):
    next(batches)
  started = time.perf_counter()
  for _ in range(timed):
    next(batches)
  seconds = time.perf_counter() - started
  batches.close()
  gc.collect()  # ends the threads of a tf.data pipeline
  return timed * BATCH / seconds


def shown(rounds: list[float]) -> str:
  return f'{np.median(rounds):.2f} ({min(rounds):.2f} to {max(rounds):.2f})'


def measure(root: pathlib.Path, images: int, workers: int, rounds: int):
  """Images per second and core of every variant, and their ratios."""
  # A multiple of the number of workers, which deliver batches in turn.
  timed = workers * max(8, math.ceil(images / BATCH / workers))
  untimed = max(4, AHEAD * workers)
  files = write_folder(root / 'folder', images)
  write_tfrecords(root / 'folder', root)
  folder = our_source(folder=str(root / 'folder'))
  tfrecords = our_source('photographs', dir=str(root))
  check_stored(tfrecords, files)
  loader = partial(torch_loader, files, workers, untimed + timed)
  variants: dict[str, Callable[[], Batches]] = {
    'ours, folder': partial(our_batches, folder),
    'ours, TFRecords': partial(our_batches, tfrecords),
    BASELINE: partial(torch_batches, loader(torchvision_crop)),
    'decode alone, TensorFlow': partial(tensorflow_decodes, files, workers),
    'decode alone, PIL': partial(torch_batches, loader(decoded)),
  }
  rates: dict[str, list[float]] = {name: [] for name in variants}
  for _ in range(rounds):
    for name, variant in variants.items():
      rates[name].append(rate(variant(), untimed, timed) / workers)
  return {
    'images': images,
    'mean_bytes': sum(map(os.path.getsize, files)) / images,
    'batches_timed': timed,
    'images_per_second_per_core': rates,
    'ratios': {
      name: [a / b for a, b in zip(own, rates[BASELINE], strict=True)]
      for name, own in rates.items()
    },
  }


def keep_to(workers: int | None) -> int:
  """Restricts this process to `workers` cores (None: all); their number."""
  if hasattr(os, 'sched_setaffinity'):
    os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[:workers])
    return len(os.sched_getaffinity(0))
  return workers or os.cpu_count() or 1


def main():
  parser = argparse.ArgumentParser()
  for name, default in (('images', 2000), ('workers', None), ('rounds', 5)):
    parser.add_argument(f'--{name}', type=int, default=default)
  parser.add_argument('--json', type=pathlib.Path)
  flags = parser.parse_args()
  if flags.images < BATCH + VALIDATION:
    parser.error(f'--images must be {BATCH + VALIDATION} or more')
  workers = keep_to(flags.workers)  # before TensorFlow counts them
  import jax

  from dnal_jax.data.crops import import_tensorflow

  jax.config.update('jax_platforms', 'cpu')
  processor = platform.processor() or platform.machine()
  host = {'processor': processor, 'cores': os.cpu_count(), 'workers': workers}
  for module in (jax, import_tensorflow(), torch, PIL):
    host[module.__name__] = module.__version__
  print(', '.join(f'{key} {value}' for key, value in host.items()), flush=True)
  with tempfile.TemporaryDirectory() as root:
    os.environ['XDG_CACHE_HOME'] = f'{root}/cache'  # where dnal_jax caches
    found = measure(pathlib.Path(root), flags.images, workers, flags.rounds)
  print(
    '{images} JPEGs of {mean_bytes:.0f} bytes on average, {batches_timed}'
    f' batches of {BATCH} timed in each round'.format(**found)
  )
  print(f'{"":25} {"images/s/core":25} over {BASELINE}')
  for name, rates in found['images_per_second_per_core'].items():
    print(f'{name:25} {shown(rates):25} {shown(found["ratios"][name])}')
  if flags.json:
    flags.json.write_text(json.dumps({**host, **found}, indent=2) + '\n')


if __name__ == '__main__':
  main()
