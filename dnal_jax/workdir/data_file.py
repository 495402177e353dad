"""data.json: what the data set of a run held when the run began.

  class_names  names of the classes, by label
  parts        'train/cat' or 'train' -> [number of images, digest]; of a folder
               the digest is of the names and sizes of files, and of what is in
               them if that is up to 1 GiB in all; of a small data set, of its
               pixels and labels; of others, of the sizes of record files

A run goes on only with the data that it began with.
"""

import pathlib

from dnal_jax import errors
from dnal_jax.data.contents import Contents
from dnal_jax.workdir import json_files

NAME = 'data.json'


def read(workdir: pathlib.Path) -> Contents:
  """What the data set held.

  Raises:
    UserError: the file is missing or damaged.
  """
  path = workdir / NAME
  try:
    return Contents.from_json(json_files.read_json(path))
  except ValueError as error:
    raise errors.UserError(
      f"'{path}' is not a valid {NAME}; restore it from a copy, or delete it if"
      ' the data set is as it was when the run began'
    ) from error


def check_or_write(workdir: pathlib.Path, title: str, now: Contents) -> None:
  """Compares the file with the data set `title` as it is now; writes it where
  there is none, as in the folder of a new run.

  Raises:
    UserError: the data set has changed, and how; or the file is damaged.
    OSError: the file cannot be written.
  """
  path = workdir / NAME
  if not path.exists():
    json_files.write_json(path, now.to_json())
    return
  before = read(workdir)
  difference = before.first_difference(now)
  if difference is not None:
    go_on = f"delete '{path}' to go on with the images as they are now, "
    if before.class_names != now.class_names:
      go_on = ''  # labels would mean something else
    raise errors.UserError(
      f"'{title}' has changed since the run in '{workdir}' began: {difference}."
      f' Bring it back, {go_on}or choose another --workdir'
    )
