"""What a data set holds, by which a later start of a run recognises it."""

from collections.abc import Mapping
import dataclasses
import itertools
from typing import Any, NamedTuple


class Part(NamedTuple):
  """A split, or a class of a split."""

  images: int
  digest: str  # of what the images are; see who makes it


@dataclasses.dataclass(frozen=True)
class Contents:
  """The classes and the images of a data set."""

  class_names: tuple[str, ...]  # by label
  parts: Mapping[str, Part]  # 'train/cat' or 'train' -> what it holds

  def first_difference(self, now: 'Contents') -> str | None:
    """In words, the first of what is no longer as it was; None if nothing
    is."""
    pairs = itertools.zip_longest(self.class_names, now.class_names)
    for label, (before, after) in enumerate(pairs):
      if before is None:
        return f"class {label}, '{after}', is new"
      if after is None:
        return f"class {label}, '{before}', is gone"
      if before != after:
        return f"class {label} was '{before}' and is '{after}'"
    for name in sorted(self.parts.keys() | now.parts.keys()):
      before, after = self.parts.get(name), now.parts.get(name)
      if before == after:
        continue
      if before is None or after is None:
        return f"'{name}' is {'new' if before is None else 'gone'}"
      if before.images != after.images:
        return f"'{name}' had {before.images} images and has {after.images}"
      return f"'{name}' has other images than before"
    return None

  def to_json(self) -> dict[str, Any]:
    """The value that `from_json` reads, of dicts, lists and numbers."""
    parts = {name: list(part) for name, part in self.parts.items()}
    return {'class_names': list(self.class_names), 'parts': parts}

  @classmethod
  def from_json(cls, value: Any) -> 'Contents':
    """What `to_json` wrote.

    Raises:
      ValueError: it is something else.
    """
    try:
      names, parts = value['class_names'], value['parts']
      contents = cls(
        tuple(names), {name: Part(*part) for name, part in parts.items()}
      )
      texts = [*names, *(part.digest for part in contents.parts.values())]
      counts = [part.images for part in contents.parts.values()]
      if not isinstance(names, list) or not all(
        type(value) is kind
        for values, kind in ((texts, str), (counts, int))
        for value in values
      ):
        raise ValueError('of other types')
    except (LookupError, TypeError, AttributeError) as error:
      raise ValueError(f'not the contents of a data set: {error!r}') from error
    return contents
