"""Untrusted weights are the arrays that the network needs, or refused."""

import copy
import json
import struct

import pytest
from untrusted import LOGITS, UP, VALID, joined, make, refused, split

from dnal_jax.workdir import weights


@pytest.fixture
def workdir(tmp_path):
  return make(tmp_path)


def of_header(mutate):
  """A mutation of the file that mutates its header."""

  def mutated(content):
    header, data = split(content)
    mutate(header)
    return joined(header, data)

  return mutated


def of_values(value):
  """A mutation that sets the last float32."""
  return lambda content: content[:-4] + struct.pack('<f', value)


def renamed(header):
  header[UP] = header.pop(LOGITS)


@pytest.mark.parametrize(
  ('mutate', 'message'),
  [
    (lambda _: b'', 'of 0 bytes'),
    (lambda c: c[:5], 'of 5 bytes'),
    (lambda c: c[:100], 'should be its header'),
    (lambda c: c[:-1], 'bytes and should have'),
    (lambda c: c + b'\0', 'bytes and should have'),
    (lambda c: b'\xff' * 8 + c[8:], '18,446,744,073,709,551,615 should be'),
    (lambda c: struct.pack('<Q', 2) + c[8:], 'variables.safetensors'),
    (lambda c: joined(b'\x80\x04.', b''), "'utf-8' codec can't decode"),
    (lambda c: joined([1], split(c)[1]), 'its header is not an object'),
    (lambda c: joined(b'[' * 10**4, b''), 'more than 32 levels'),
    (
      of_header(lambda h: h[LOGITS].update(shape=[10**12])),
      f"'{LOGITS}' should be ['F32', [10]] and is ['F32', [1000000000000]]",
    ),
    (
      of_header(lambda h: h[LOGITS].update(shape=[2**63, 2**63])),
      f"'{LOGITS}' should be",
    ),
    (of_header(lambda h: h[LOGITS].update(shape=[-10])), "is ['F32', [-10]]"),
    (of_header(lambda h: h[LOGITS].update(shape=[10.0])), 'cannot read'),
    (of_header(lambda h: h[LOGITS].update(dtype='I32')), "is ['I32', [10]]"),
    (of_header(lambda h: h[LOGITS].update(dtype='O')), "is ['O', [10]]"),
    (
      of_header(lambda h: h[LOGITS].update(data_offsets=[0, 10**12])),
      'cannot read',
    ),
    (
      of_header(lambda h: h[LOGITS].update(data_offsets=[0, 40])),
      'cannot read',
    ),
    (of_header(lambda h: h.pop(LOGITS)), "should be ['F32', [10]] and is None"),
    (of_header(renamed), f"'{UP}' should be None and is ['F32', [10]]"),
    (
      of_header(
        lambda h: h.update(
          x={'dtype': 'F32', 'shape': [0], 'data_offsets': [0, 0]}
        )
      ),
      "'x' should be None and is ['F32', [0]]",
    ),
    (of_header(lambda h: h.update({LOGITS: 7})), 'and is 7'),
    (of_header(lambda h: h.update(x=None)), 'cannot read'),
    (of_values(float('nan')), 'holds NaN or an infinity'),
    (of_values(float('-inf')), 'holds NaN or an infinity'),
  ],
  ids=range(25),
)
def test_weights_that_do_not_fit(mutate, message, workdir):
  path = workdir / weights.FILE
  path.write_bytes(mutate(path.read_bytes()))
  error = refused(workdir)
  assert message in error
  assert 'variables.safetensors' in error
  assert "bring it back from a copy of the run's folder" in error


def test_weights_of_another_architecture(workdir):
  document = copy.deepcopy(VALID)
  document['gates']['gate3_2'] = [1, 2, 3]
  (workdir / 'architecture.json').write_text(json.dumps(document))
  error = refused(workdir)
  assert 'does not fit architecture.json' in error
  assert "'batch_stats/conv3_2/bn/mean' should be ['F32', [3]]" in error


def test_duplicate_key_in_the_header(workdir):
  path = workdir / weights.FILE
  header, data = split(path.read_bytes())
  body = json.dumps(header).encode()[1:]
  again = json.dumps({LOGITS: header[LOGITS]}).encode()[:-1]
  path.write_bytes(joined(again + b', ' + body, data))
  assert f"the key '{LOGITS}' is there twice" in refused(workdir)
