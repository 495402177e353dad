"""Folders of a run as a stranger might hand them over, for the tests."""

import json
import struct

import numpy as np
import pytest

import dnal_jax
from dnal_jax import errors
from dnal_jax.workdir import architecture, weights

VALID = {
  'schema_version': 1,
  'network': {'name': 'vgg7_digits', 'width': 1.0, 'classes': 10},
  'image_shape': [8, 8, 1],
  'gates': {f'gate{i}_{j}': [0, 5] for i in (1, 2, 3) for j in (1, 2)},
}
LOGITS = 'params/head/logits/bias'
UP = '../../../etc/passwd'


def make(folder):
  """A folder that loads: VALID, and weights that fit it."""
  path = folder / 'architecture.json'
  path.write_text(json.dumps(VALID))
  rng = np.random.default_rng(0)
  arrays = {
    key: rng.normal(size=shape).astype(dtype)
    for key, (shape, dtype) in architecture.form(
      *architecture.read(path)
    ).arrays.items()
  }
  weights.write(folder, arrays)
  return folder


def refused(folder):
  """The message of `load`, which must name the folder."""
  with pytest.raises(errors.UserError) as told:
    dnal_jax.load(folder)
  message = str(told.value)
  assert str(folder) in message
  assert len(message) < 600
  assert '\n' not in message
  return message


def split(content):
  """(header, data) of a file of safetensors."""
  (length,) = struct.unpack('<Q', content[:8])
  return json.loads(content[8 : 8 + length]), content[8 + length :]


def joined(header, data):
  """The file of a header, as JSON or as bytes, and of data."""
  told = header if isinstance(header, bytes) else json.dumps(header).encode()
  return struct.pack('<Q', len(told)) + told + data
