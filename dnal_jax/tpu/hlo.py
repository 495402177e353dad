"""What the text of a compiled program (XLA's HLO) tells."""

from collections import Counter
import math
import re

# An operation of its own, or the end of one that runs beside others, whose
# result is that of the whole; its beginning ('-start') is not counted.
_COLLECTIVE = re.compile(
  r'= (\(?[^=\n]*?\)?) (all-reduce|all-gather|all-to-all|ragged-all-to-all'
  r'|collective-permute|collective-broadcast|reduce-scatter)(?:-done)?\('
)
_COMMENT = re.compile(r'/\*.*?\*/')
_ARRAY = re.compile(r'([a-z]\w*)\[([\d,]*)\]')


def collectives(program: str) -> dict[str, int]:
  """{operation: bytes of its results} of a program, on one of its devices.

  Everything that devices exchange; the body of a loop counts once.
  """
  told: Counter[str] = Counter()
  for shapes, operation in _COLLECTIVE.findall(_COMMENT.sub('', program)):
    for dtype, sides in _ARRAY.findall(shapes):
      elements = math.prod(int(side) for side in sides.split(',') if side)
      told[operation] += -(-elements * _bits(dtype) // 8)
  return dict(told)


def _bits(dtype: str) -> int:
  """Of an element: 32 of 'f32', 8 of 'f8e4m3fn', and of 'pred'."""
  size = re.search(r'\d+', dtype)
  return int(size[0]) if size else 8
