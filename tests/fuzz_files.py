"""Reads mutated files; each must be read as what it says, or refused.

python tests/fuzz_files.py ARCHITECTURES WEIGHTS FOLDER

reads so many mutations of architecture.json and of the weights, the same ones
every time. Prints as JSON how many were read, the longest time of one (wall
clock, and CPU time, which other processes do not lengthen), and the peak of
memory.
"""

import collections
import copy
import json
import os
import pathlib
import random
import re
import resource
import sys
import time

from flax.core import FrozenDict
import hypothesis
from hypothesis import strategies as st
import numpy as np
from untrusted import LOGITS, UP, VALID, full, joined, largest, make, split

import dnal_jax
from dnal_jax import errors, models, trees
from dnal_jax.workdir import architecture, weights

ADDRESSES = 2**30  # bytes of address space beyond those of the libraries
CLOCKS = time.perf_counter, time.process_time
_LOADED = 200  # architectures that are loaded with the weights, too

# Valid values, nearly valid ones, and others.
PLAUSIBLE = (
  *('vgg7_digits', 'resnet8_digits', 'mobilenet_v2', UP, '', 'x' * 1000),
  *(0, 1, 2, 8, 10, 16, 31, 32, 64, 1000, 1024, 1025, 100_000, -1),
  *(0.25, 1.0, 2.0, 8.0, 8.5, -0.0, 1e-300, 1e9, 2**31, 2**63, 2**64, 10**300),
  *(True, None, float('nan'), float('inf'), '\ud800', '\x00', '10'),
  *([], [0], [31], [32], list(range(32)), [5, 0], [0, 0], [0, True], [-1]),
  *({}, {'name': 'vgg7_digits'}, [8, 8, 1], [8, 8], [16, 9, 3], [[8], 8, 1]),
)
KEYS = (
  *(*VALID, *VALID['network'], *VALID['preprocessing'], *VALID['gates']),
  *('gate4_1', 'keep', UP, ''),
)
anything = st.recursive(
  st.none()
  | st.booleans()
  | st.integers()
  | st.floats()
  | st.text(max_size=8)
  | st.sampled_from(PLAUSIBLE),
  lambda inner: (
    st.lists(inner, max_size=4)
    | st.dictionaries(st.sampled_from(KEYS) | st.text(max_size=5), inner)
  ),
  max_leaves=8,
)

# Valid values of a key, so that some files can be read. There are few networks,
# since each is traced.
FITTING = {
  'schema_version': st.just(2),
  'name': st.just('vgg7_digits'),
  'width': st.sampled_from((1, 1.0, 2.0)),
  'classes': st.sampled_from((10, 1000)),
  'image_shape': st.sampled_from(([8, 8, 1], [16, 9, 3])),
  **dict.fromkeys(('mean', 'std'), st.lists(st.floats(0.1, 1), max_size=3)),
  'short_side': st.none() | st.integers(1, 20),
  **dict.fromkeys(
    VALID['gates'], st.sets(st.integers(0, 32), max_size=9).map(sorted)
  ),
  **dict.fromkeys((0, 1, 2), st.integers(0, 32)),
}


class Fuzz:
  """Replaces the files of a folder, reads them, and counts."""

  def __init__(self, folder: pathlib.Path):
    self.folder = folder
    self.count = collections.Counter()
    self.slowest = collections.Counter()  # seconds of one file

  def timed(self, call, *args):
    """The call's result; None if it refuses the file in a proper message."""
    started = {clock: clock() for clock in CLOCKS}
    try:
      return call(*args)
    except errors.UserError as error:
      message = str(error)
      assert str(self.folder) in message, message
      assert len(message) < 1000, message
      assert message.isprintable(), message
      return None
    finally:
      for clock, then in started.items():
        name = f'slowest_{clock.__name__}'
        self.slowest[name] = max(self.slowest[name], clock() - then)

  def architecture(self, content: bytes) -> None:
    path = self.folder / 'architecture.json'
    path.write_bytes(content)
    self.count['architectures'] += 1
    found = self.timed(architecture.read, path)
    if found is None:
      return
    self.count['architectures_read'] += 1
    net, image_shape, class_names, preprocessing = found
    says = json.loads(content)
    full = models.get(says['network']['name'])
    spec = {k: says['network'][k] for k in ('classes', 'width')}
    keep = {gate: tuple(ids) for gate, ids in says['gates'].items()}
    assert type(spec['classes']) is int
    assert net == full.build(**spec, keep=FrozenDict(keep))
    assert list(image_shape) == says['image_shape']
    assert list(class_names or ()) == says.get('class_names', [])
    prepared = preprocessing and preprocessing.to_json()
    assert json.loads(json.dumps(prepared)) == says.get('preprocessing')
    if self.count['architectures_read'] < _LOADED:
      self.timed(dnal_jax.load, self.folder)

  def weights(self, content: bytes) -> None:
    (self.folder / weights.FILE).write_bytes(content)
    self.count['weights'] += 1
    found = self.timed(dnal_jax.load, self.folder)
    if found is None:
      return
    self.count['weights_read'] += 1
    header, data = split(content)
    header.pop('__metadata__', None)
    arrays = trees.flatten(found.variables)
    assert header.keys() == arrays.keys()
    for key, entry in header.items():
      start, end = entry['data_offsets']
      says = np.frombuffer(data[start:end], '<f4').reshape(entry['shape'])
      np.testing.assert_array_equal(arrays[key], says, strict=True)


def places(value, above=()):
  """The path of each value inside a value."""
  if isinstance(value, dict | list):
    pairs = value.items() if isinstance(value, dict) else enumerate(value)
    for key, child in pairs:
      yield (*above, key)
      yield from places(child, (*above, key))


@st.composite
def documents(draw):
  """VALID with a few of its values replaced, dropped or added."""
  value = copy.deepcopy(VALID)
  for _ in range(draw(st.integers(1, 3))):
    known = list(places(value))
    if not known:
      break
    *above, last = draw(st.sampled_from(known))
    owner = value
    for key in above:
      owner = owner[key]
    how = draw(st.sampled_from(('fit', 'fit', 'fit', 'put', 'drop', 'add')))
    if how == 'drop':
      del owner[last]
    elif how == 'fit':
      owner[last] = copy.deepcopy(draw(FITTING.get(last, anything)))
    elif how == 'add' and isinstance(owner, dict):
      owner[draw(st.sampled_from(KEYS))] = copy.deepcopy(draw(anything))
    else:
      owner[last] = copy.deepcopy(draw(anything))
  return json.dumps(value).encode()


def tokens(rng: random.Random, content: bytes) -> bytes:
  """Tokens of JSON moved, repeated, dropped, or replaced by others."""
  parts = re.findall(rb'"[^"]*"|[\d.]+|\S', content)
  others = (b'[' * 2000, b'1e999', b'-', b'NaN', b'true', b'null', b'""', b'7')
  for _ in range(rng.randint(1, 3)):
    i, j = rng.randrange(len(parts)), rng.randrange(len(parts))
    parts[i] = rng.choice(
      (parts[j], parts[i] + parts[j], b'', rng.choice(others), b'%d' % j)
    )
  return b' '.join(parts)


def octets(rng: random.Random, content: bytes, most: int) -> bytes:
  """Bytes of the first `most` flipped, dropped, repeated or added."""
  for _ in range(rng.randint(1, 3)):
    i = rng.randrange(min(most, len(content)) or 1)
    j = i + rng.choice((1, 1, 2, 8, 100))
    middle = rng.choice(
      (
        bytes(b ^ (1 << rng.randrange(8)) for b in content[i:j][:1])
        + content[i + 1 : j],
        b'',
        content[i:j] * 2,
        rng.randbytes(j - i),
        rng.randbytes(j - i) + content[i:j],
      )
    )
    content = content[:i] + middle + content[j:]
  return content[:i] if rng.random() < 0.1 else content


def of_header(rng: random.Random, content: bytes) -> bytes:
  """Parts of the header of safetensors replaced, renamed or dropped."""
  header, data = split(content)
  key = rng.choice(list(header))
  field = rng.choice(('dtype', 'shape', 'data_offsets'))
  value = rng.choice((*PLAUSIBLE, 'F16', 'I32', [2**62, 4], [10], [0, 40]))
  how = rng.randrange(6)
  if how == 0:
    header[rng.choice((UP, LOGITS, '__metadata__'))] = header.pop(key)
  elif how == 1:
    header[key] = value
  elif how == 2:
    other = rng.choice(list(header))
    header[key], header[other] = header[other], header[key]
  elif how == 3:
    header['__metadata__'] = {'format': 'np'}
  else:
    header[key][field] = value
  return joined(header, data)


def main(architectures: int, weight_files: int, folder: pathlib.Path) -> None:
  fuzz = Fuzz(make(folder))
  of_architecture = (folder / 'architecture.json').read_bytes()
  of_weights = (folder / weights.FILE).read_bytes()
  pages = int(pathlib.Path('/proc/self/statm').read_text().split()[0])
  limit = pages * os.sysconf('SC_PAGESIZE') + ADDRESSES
  resource.setrlimit(resource.RLIMIT_AS, (limit, limit))

  for content in largest():
    fuzz.architecture(content)
  half = architectures // 2
  settings = hypothesis.settings(
    max_examples=half,
    derandomize=True,
    database=None,
    deadline=None,
    phases=[hypothesis.Phase.generate],
    suppress_health_check=list(hypothesis.HealthCheck),
  )

  @settings
  @hypothesis.given(documents())
  def of_trees(content):
    fuzz.architecture(content)

  of_trees()
  rng = random.Random(0)
  while fuzz.count['architectures'] < architectures:
    mutate = rng.choice((tokens, lambda *a: octets(*a, most=len(a[1]))))
    fuzz.architecture(mutate(rng, of_architecture))

  (folder / 'architecture.json').write_bytes(of_architecture)
  length = len(of_weights) - len(split(of_weights)[1])
  fuzz.weights(joined(full(b'7,'), b''))
  while fuzz.count['weights'] < weight_files:
    how = rng.randrange(4)
    if how == 0:
      content = of_header(rng, of_weights)
    elif how == 3:  # in the values
      content = bytearray(of_weights)
      for _ in range(rng.randint(1, 3)):
        content[rng.randrange(length, len(content))] ^= 1 << rng.randrange(8)
    else:
      most = length if how == 1 else len(of_weights)
      content = octets(rng, of_weights, most=most)
    fuzz.weights(bytes(content))

  # getrusage would include the memory of the parent at the fork.
  status = pathlib.Path('/proc/self/status').read_text()
  kilobytes = int(re.search(r'VmHWM:\s+(\d+) kB', status)[1])
  counts = {**fuzz.count, **fuzz.slowest, 'peak_bytes': 1024 * kilobytes}
  print(json.dumps(counts))


if __name__ == '__main__':
  main(int(sys.argv[1]), int(sys.argv[2]), pathlib.Path(sys.argv[3]))
