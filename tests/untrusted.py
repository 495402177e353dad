"""A small valid run folder, and means to corrupt it."""

import json
import struct

import numpy as np
import pytest

import dnal_jax
from dnal_jax import errors
from dnal_jax.workdir import architecture, json_files, weights

VALID = {
  'schema_version': 2,
  'network': {'name': 'vgg7_digits', 'width': 1.0, 'classes': 10},
  'image_shape': [8, 8, 1],
  'preprocessing': {'mean': [0.5], 'std': [0.25], 'short_side': 9},
  'class_names': list('0123456789'),
  'gates': {f'gate{i}_{j}': [0, 5] for i in (1, 2, 3) for j in (1, 2)},
}
LOGITS = 'params/head/logits/bias'
UP = '../../../etc/passwd'


def make(folder):
  """Makes the folder loadable: VALID, and weights that fit it."""
  path = folder / 'architecture.json'
  path.write_text(json.dumps(VALID))
  rng = np.random.default_rng(0)
  arrays = {
    key: rng.normal(size=shape).astype(dtype)
    for key, (shape, dtype) in architecture.form(
      *architecture.read(path)[:2]
    ).arrays.items()
  }
  weights.write(folder, arrays)
  return folder


def refused(folder):
  """The message of `load`: one short line that names the folder."""
  with pytest.raises(errors.UserError) as raised:
    dnal_jax.load(folder)
  message = str(raised.value)
  assert str(folder) in message
  assert len(message) < 600
  assert '\n' not in message
  return message


def split(content):
  """(parsed header, data) of the content of a safetensors file."""
  (length,) = struct.unpack('<Q', content[:8])
  return json.loads(content[8 : 8 + length]), content[8 + length :]


def joined(header, data):
  """The content of a safetensors file; `header` is bytes or becomes JSON."""
  text = header if isinstance(header, bytes) else json.dumps(header).encode()
  return struct.pack('<Q', len(text)) + text + data


def full(unit: bytes) -> bytes:
  """A JSON list of one element, repeated up to the largest file allowed."""
  return b'[' + unit * ((json_files.MAX_BYTES - 3) // len(unit)) + b'0]'


def largest():
  """The files that take the most memory and time before they are refused."""
  for unit in (b'[],', b'0,', b'"ab",', b'1e5,'):
    yield full(unit)
  yield b'[' + b'{"a":[[[[0]]]]},' * 16_000 + b'0]'
  for name, classes, side in (
    ('vgg7_digits', 10, 512),
    ('vgg16', 100_000, 1024),
    ('resnet50', 100_000, 1024),
    ('mobilenet_v2', 100_000, 1024),
  ):
    network = {'name': name, 'width': 8, 'classes': classes}
    value = {
      **VALID,
      'network': network,
      'image_shape': [side, side, 64],
      'preprocessing': {'mean': [1] * 64, 'std': [1] * 64, 'short_side': None},
      'class_names': ['x'] * classes,
    }
    yield json.dumps(value).encode()
