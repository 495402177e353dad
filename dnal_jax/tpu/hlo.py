"""Reads the text of a compiled program (XLA's HLO)."""

from collections import Counter
import math
import re

# A synchronous operation, or the '-done' half of an asynchronous one, which has
# its result; the '-start' half is not counted.
_COLLECTIVE = re.compile(
  r'= (\(?[^=\n]*?\)?) (all-reduce|all-gather|all-to-all|ragged-all-to-all'
  r'|collective-permute|collective-broadcast|reduce-scatter)(?:-done)?\('
)
_COMMENT = re.compile(r'/\*.*?\*/')
_ARRAY = re.compile(r'([a-z]\w*)\[([\d,]*)\]')


def collectives(program: str) -> dict[str, int]:
  """{operation: bytes of its results} of all collectives, on one device.

  The body of a loop counts once.
  """
  found: Counter[str] = Counter()
  for shapes, operation in _COLLECTIVE.findall(_COMMENT.sub('', program)):
    for dtype, sides in _ARRAY.findall(shapes):
      elements = math.prod(int(side) for side in sides.split(',') if side)
      found[operation] += -(-elements * _bits(dtype) // 8)
  return dict(found)


def _bits(dtype: str) -> int:
  """Bits of an element: 32 for 'f32', 8 for 'f8e4m3fn' and for 'pred'."""
  size = re.search(r'\d+', dtype)
  return int(size[0]) if size else 8
