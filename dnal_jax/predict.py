"""Classifies image files by the network of a finished run.

python -m dnal_jax.predict DIR FILE...  [--json]

DIR is the folder of the run. A FILE is an image, a folder of images, or a
pattern such as 'photographs/*.jpg'. Images may have any size: they are turned
upright as cameras note in JPEGs (Exif), then resized, cropped and normalised as
in the run's own evaluation.

Prints a line for each image, with the five most probable classes; with --json
an object {file, top: [{class, probability}, ...]}. A file that is missing or
cannot be decoded is named on standard error, the others are classified, and the
exit code is 2.
"""

from collections.abc import Iterator, Sequence
import json
import pathlib
import sys

from absl import flags
import numpy as np
import tqdm

from dnal_jax import cli, errors, paths
from dnal_jax.data import cache, image_files
from dnal_jax.parallel import compile_cache
from dnal_jax.workdir import saved_model

FLAGS = flags.FlagValues()
cli.define_config(
  'Config file of the run; needed if it registers the network of the run.',
  FLAGS,
)
_JSON = flags.DEFINE_bool(
  'json', False, 'Print JSON, an object for each image.', flag_values=FLAGS
)


def _found(names: Sequence[str]) -> tuple[list[pathlib.Path], list[str]]:
  """The files that are named, and the names that stand for none, which are
  printed.

  Raises:
    UserError: no name stands for a file.
  """
  files, lost = [], []
  for name in names:
    try:
      files += image_files.find(name)
    except errors.UserError as error:
      if len(names) == 1:
        raise
      print(f'skipped: {error}', file=sys.stderr)
      lost.append(name)
  if not files:
    raise errors.UserError('none of the names that were given is of an image')
  return files, lost


def _decoded(
  files: Sequence[pathlib.Path], channels: int, done: list[pathlib.Path]
) -> Iterator[np.ndarray]:
  """[H, W, C] uint8 of each file that can be decoded, which joins `done`; names
  the others."""
  for file in files:
    try:
      pixels = image_files.read(file, channels)
    except errors.UserError as error:
      tqdm.tqdm.write(f'skipped: {error}', file=sys.stderr)
      continue
    done.append(file)
    yield pixels


def _line(file: pathlib.Path, top: list[tuple[str, float]]) -> str:
  if _JSON.value:
    rows = [{'class': name, 'probability': share} for name, share in top]
    return json.dumps({'file': str(file), 'top': rows})
  return f'{file}: ' + ', '.join(f'{name} {share:.2%}' for name, share in top)


def body(argv: Sequence[str]) -> None:
  if len(argv) < 3:
    raise errors.UserError(
      'give the folder of a run, and images, folders of images or patterns:'
      ' DIR FILE...'
    )
  compile_cache.keep_in(cache.path('compiled'))
  workdir = paths.local('DIR', argv[1])
  if workdir.is_file():
    raise errors.UserError(
      f"'{workdir}' is a file; the folder of a run comes first: DIR FILE..."
    )
  files, lost = _found(argv[2:])
  model = saved_model.load(workdir)
  channels = model.preprocessing.image_shape[2]
  image_files.check_channels(channels)
  if model.class_names is None:
    print(
      f"'{argv[1]}' is of an earlier version, which kept no names of classes:"
      ' classes are shown by their numbers, from 0',
      file=sys.stderr,
    )
  skipped, size = len(lost), saved_model.BATCH
  with tqdm.tqdm(
    total=len(files), unit=' images', leave=False, disable=None
  ) as bar:
    for start in range(0, len(files), size):
      chunk, done = files[start : start + size], []
      found = model.predict(_decoded(chunk, channels, done))
      for file, top in zip(done, found.top(), strict=True):
        tqdm.tqdm.write(_line(file, top))
      skipped += len(chunk) - len(done)
      bar.update(len(chunk))
  if skipped:
    raise errors.UserError(
      f'{skipped} of {len(files) + len(lost)} files cannot be read; replace or'
      ' leave out those that were skipped'
    )


if __name__ == '__main__':
  cli.main(body, FLAGS)
