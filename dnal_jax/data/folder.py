"""A folder of images: train/CLASS/... to train on, val/CLASS/... to test.

All that lies below a directory CLASS belongs to that class, in directories of
its own or not. What is an image is decided by the endings of file names. Names
that begin with a dot are hidden files and are left out, as are files of other
endings. Nothing else in the folder matters.
"""

from collections import Counter
from collections.abc import Iterator
import contextlib
import hashlib
import os
import pathlib
import random
from typing import NamedTuple

from dnal_jax import errors
from dnal_jax.data.contents import Contents, Part

# What TensorFlow decodes.
ENDINGS = ('.bmp', '.gif', '.jfif', '.jpeg', '.jpg', '.png', '.webp')
# Bytes up to which a folder is read as a whole to recognise it.
_READ_ALL = 1 << 30
_WANTED = 'train/CLASS/* and val/CLASS/* with images'


class Images(NamedTuple):
  """The images of train or of val, in an order that is drawn once."""

  paths: list[str]
  labels: list[int]  # indices into the names of the classes


class Listing(NamedTuple):
  """The images of a folder."""

  train: Images
  val: Images
  class_names: tuple[str, ...]  # by label
  sizes: dict[tuple[str, str], dict[str, int]]  # (part, class) -> path -> bytes
  # What was left out -> number of files.
  left_out: Counter[str]


def class_names(root: pathlib.Path) -> list[str]:
  """The names of the directories in train, sorted; their indices are labels.

  Raises:
    UserError: there is no directory train, or it has fewer than two classes.
  """
  names = _class_directories(root, 'train')
  if not names:
    raise errors.UserError(
      f"'{root / 'train'}' has no directories, one for each class; data.folder"
      f' must hold {_WANTED}'
    )
  if len(names) == 1:
    raise errors.UserError(
      f"'{root / 'train'}' has one class, '{names[0]}'; a classifier needs two"
      ' or more'
    )
  return names


def list_images(root: pathlib.Path) -> Listing:
  """Finds the images of a folder, and reads none of them.

  Raises:
    UserError: a directory is missing or cannot be read, or a class has no image
      in train or in val.
  """
  names, left_out, found = class_names(root), Counter(), {}
  _check_same_classes(names, _class_directories(root, 'val'), root)
  for part in ('train', 'val'):
    for name in names:
      images = _images_below(root / part / name, left_out)
      found[part, name] = dict(sorted(images))
    _count_beside_classes(root / part, left_out)
    empty = [name for name in names if not found[part, name]]
    _check_none_empty(root / part, empty, left_out)
  splits = {}
  for part in ('train', 'val'):
    examples = [(p, i) for i, n in enumerate(names) for p in found[part, n]]
    # As in tensorflow-datasets' ImageFolder.
    random.Random(part).shuffle(examples)
    paths, labels = map(list, zip(*examples, strict=True))
    splits[part] = Images(paths, labels)
  return Listing(
    **splits, class_names=tuple(names), sizes=found, left_out=left_out
  )


def contents(root: pathlib.Path, listing: Listing) -> Contents:
  """By what a later start recognises the folder. Reads its files, if they have
  up to `_READ_ALL` bytes in all."""
  total = sum(sum(sizes.values()) for sizes in listing.sizes.values())
  parts = {
    f'{part}/{name}': _fingerprint(
      sizes, root / part / name, total <= _READ_ALL
    )
    for (part, name), sizes in listing.sizes.items()
  }
  return Contents(listing.class_names, parts)


def describe(root: pathlib.Path, listing: Listing) -> str:
  """One line: what was found, and what was left out."""
  line = (
    f"'{root}': {len(listing.train.paths)} images in train,"
    f' {len(listing.val.paths)} in val,'
    f' {len(listing.class_names)} classes'
  )
  return f'{line}; {_describe_left_out(listing.left_out)}'


def _describe_left_out(left_out: Counter[str]) -> str:
  if not left_out:
    return 'no file was left out'
  kinds = ', '.join(f'{n} {kind}' for kind, n in sorted(left_out.items()))
  return f'left out: {kinds} (images are {", ".join(ENDINGS)})'


def _class_directories(root: pathlib.Path, part: str) -> list[str]:
  try:
    with os.scandir(root / part) as entries:
      return sorted(
        e.name for e in entries if e.is_dir() and not e.name.startswith('.')
      )
  except (FileNotFoundError, NotADirectoryError):
    raise errors.UserError(
      f"data.folder is '{root}', which has no directory '{part}'; it must hold"
      f' {_WANTED}'
    ) from None
  except OSError as error:
    raise _unreadable(error) from error


def _images_below(
  directory: pathlib.Path, left_out: Counter[str]
) -> Iterator[tuple[str, int]]:
  """(path, bytes) of every image; counts other files. A directory that links
  lead to several times is listed once."""
  seen = set()

  def fail(error: OSError) -> None:
    raise _unreadable(error) from error

  for place, directories, files in os.walk(
    directory, onerror=fail, followlinks=True
  ):
    real = os.path.realpath(place)
    if real in seen:
      directories.clear()
      continue
    seen.add(real)
    directories[:] = sorted(d for d in directories if not d.startswith('.'))
    for name in files:
      kind = _kind(name)
      if kind in ENDINGS:
        path = os.path.join(place, name)
        yield path, _size(path)
      else:
        left_out[kind] += 1


def _kind(name: str) -> str:
  """The ending of a file name, or what it has instead of one."""
  if name.startswith('.'):
    return 'hidden'
  return os.path.splitext(name)[1].lower() or 'without an ending'


def _size(path: str) -> int:
  try:
    return os.path.getsize(path)
  except OSError:  # a link to nothing: named where it is read
    return 0


def _fingerprint(
  sizes: dict[str, int], directory: pathlib.Path, read: bool
) -> Part:
  """Of names below the class's directory and sizes; with `read` of what is in
  the files, too."""
  digest = hashlib.sha256()
  for path, size in sizes.items():
    name = os.path.relpath(path, directory)
    digest.update(os.fsencode(f'{name}\0{size}\0'))
    if read:
      with contextlib.suppress(OSError), open(path, 'rb') as file:
        digest.update(hashlib.file_digest(file, 'sha256').digest())
  return Part(len(sizes), digest.hexdigest()[:16])


def _count_beside_classes(
  directory: pathlib.Path, left_out: Counter[str]
) -> None:
  with os.scandir(directory) as entries:
    for entry in entries:
      if not entry.is_dir():
        left_out[f'{_kind(entry.name)} beside the classes'] += 1


def _check_same_classes(
  train: list[str], val: list[str], root: pathlib.Path
) -> None:
  for names, others, part, other in (
    (val, train, 'val', 'train'),
    (train, val, 'train', 'val'),
  ):
    extra = sorted(set(names) - set(others))
    if extra:
      raise errors.UserError(
        f"'{root / part}' has the class '{extra[0]}', which '{root / other}'"
        ' lacks; add it there, or remove that directory'
      )


def _check_none_empty(
  directory: pathlib.Path, empty: list[str], left_out: Counter[str]
) -> None:
  if empty:
    raise errors.UserError(
      f"'{directory}' has no image of {', '.join(empty)}"
      f' ({_describe_left_out(left_out)}); add some, or remove that directory'
      ' from both train and val'
    )


def _unreadable(error: OSError) -> errors.UserError:
  return errors.UserError(
    f"'{error.filename}' cannot be read ({error.strerror}); mend that, or name"
    ' another data.folder'
  )
