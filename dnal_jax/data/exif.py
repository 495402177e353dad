"""The orientation that a camera has noted in a JPEG file.

Cameras and phones store pixels as the sensor gives them and note how the image
is to be turned (Exif 2.3, tag 0x0112). The values 1 to 8 are all combinations
of transposing, and then flipping vertically and horizontally.
"""

import struct

import numpy as np

# Enough of a file for its metadata, which stands before the pixels.
HEAD = 1 << 17  # bytes
TRANSPOSED, FLIPPED_VERTICALLY, FLIPPED_HORIZONTALLY = (
  (5, 6, 7, 8),
  (3, 4, 7, 8),
  (2, 3, 6, 7),
)
_ORIENTATION, _SHORT = 0x0112, 3
_APP1, _START_OF_SCAN = 0xE1, 0xDA


def orientation(head: bytes) -> int:
  """1 to 8, from the first bytes of a file (HEAD); 1, which is unchanged, if it
  is no JPEG, notes nothing, or its metadata is damaged."""
  try:
    tiff = _exif(head)
    return _orientation(tiff) if tiff else 1
  except struct.error:  # cut short
    return 1


def upright(pixels: np.ndarray, value: int) -> np.ndarray:
  """The stored pixels [H, W, C] turned from that orientation."""
  if value in TRANSPOSED:
    pixels = pixels.transpose(1, 0, 2)
  if value in FLIPPED_VERTICALLY:
    pixels = pixels[::-1]
  if value in FLIPPED_HORIZONTALLY:
    pixels = pixels[:, ::-1]
  return pixels


def _exif(head: bytes) -> bytes | None:
  """The Exif segment of a JPEG, which has the format of a TIFF file."""
  if not head.startswith(b'\xff\xd8'):
    return None
  at = 2
  while True:
    start, marker, length = struct.unpack_from('>BBH', head, at)
    if start != 0xFF or marker == _START_OF_SCAN:
      return None
    if marker == 0xFF:  # a fill byte
      at += 1
      continue
    data = head[at + 4 : at + 2 + length]
    if marker == _APP1 and data.startswith(b'Exif\0\0'):
      return data[6:]
    at += 2 + length


def _orientation(tiff: bytes) -> int:
  order = {b'II': '<', b'MM': '>'}.get(tiff[:2])
  if order is None:
    return 1
  _, _, at = struct.unpack_from(f'{order}HHI', tiff)
  (entries,) = struct.unpack_from(f'{order}H', tiff, at)
  for entry in range(entries):
    place = at + 2 + 12 * entry
    tag, kind, _, value = struct.unpack_from(f'{order}HHIH', tiff, place)
    if tag == _ORIENTATION:
      return value if kind == _SHORT and 1 <= value <= 8 else 1
  return 1
