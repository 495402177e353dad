"""Untrusted run folders are read as what they say, or refused in one message.

`fuzz_files.py` makes random mutations; the ones here are chosen.
"""

import copy
import json
import os
import subprocess
import sys

from commands import ROOT, fail_here
import pytest
from untrusted import UP, VALID, make, refused

import dnal_jax
from dnal_jax import errors, limits, models
from dnal_jax.data.preprocessing import Preprocessing
from dnal_jax.workdir import architecture, json_files, weights

IDS = [0, 5]


@pytest.fixture
def workdir(tmp_path):
  return make(tmp_path)


def test_the_valid_folder_loads(workdir):
  net, variables = dnal_jax.load(workdir)
  assert dict(net.keep) == dict.fromkeys(VALID['gates'], (0, 5))
  assert variables['params']['conv3_2']['kernel'].shape == (3, 3, 2, 2)


def put(path, value):
  """A mutation that replaces the value at a path such as 'network.width'."""

  def mutate(document):
    *above, last = path.split('.')
    for key in above:
      document = document[key]
    document[int(last) if isinstance(document, list) else last] = value

  return mutate


def huge(name):
  """A mutation whose numbers are each allowed, and the network too large."""

  def mutate(document):
    document['network'] = {'name': name, 'width': 8, 'classes': 10}
    document['image_shape'] = [1024, 1024, 1]
    document['preprocessing']['short_side'] = None

  return mutate


def drop(path):
  """A mutation that removes the key at the end of a path."""

  def mutate(document):
    *above, last = path.split('.')
    for key in above:
      document = document[key]
    del document[last]

  return mutate


WIDTH = 'network.width is {}; it must be above 0 and 8.0 at most'
CLASSES = 'network.classes is {}; it must be an integer from 1 to 100,000'
SIDE = 'image_shape is {}; it must be an integer from 1 to 1,024'
MEAN = 'preprocessing.mean is {}; it must list 1 numbers above -1,000,000'
SHORT_SIDE = (
  'preprocessing.short_side is {}; it must be null, or an integer from 8,'
)
GATE = "gate 'gate1_1' is {}; it must list integers, each once, ascending"


@pytest.mark.parametrize(
  ('mutate', 'message'),
  [
    (put('schema_version', True), 'it has schema_version True; this release'),
    (put('schema_version', 3), 'this release reads 1 and 2: use the release'),
    (put('schema_version', 1), "the file has the unknown key 'preprocessing'"),
    (drop('schema_version'), 'it has schema_version None'),
    (drop('gates'), "the file lacks the key 'gates'"),
    (drop('network'), "the file lacks the key 'network'"),
    (drop('image_shape'), "the file lacks the key 'image_shape'"),
    (drop('class_names'), "the file lacks the key 'class_names'"),
    (drop('preprocessing'), "the file lacks the key 'preprocessing'"),
    (put('preprocessing', 3), 'preprocessing is 3; it must be an object'),
    (drop('preprocessing.std'), "preprocessing lacks the key 'std'"),
    (put('preprocessing.x', 3), "preprocessing has the unknown key 'x'"),
    (put('preprocessing.mean', 0.5), MEAN.format(0.5)),
    (put('preprocessing.mean', [0.5] * 2), MEAN.format([0.5] * 2)),
    (put('preprocessing.mean', [True]), MEAN.format([True])),
    (put('preprocessing.mean', [10**300]), 'mean is [1000000000'),
    (put('preprocessing.std', [0]), 'std is [0]; it must list 1 numbers above'),
    (put('preprocessing.std', 'x' * 10**6), "preprocessing.std is 'xxx"),
    (put('preprocessing.std', [0.5] * 10**6), 'preprocessing.std is [0.5, 0.'),
    (put('preprocessing.short_side', 7), SHORT_SIDE.format(7)),
    (put('preprocessing.short_side', 10**9), SHORT_SIDE.format(10**9)),
    (put('preprocessing.short_side', 9.0), SHORT_SIDE.format(9.0)),
    (put('preprocessing.short_side', True), SHORT_SIDE.format(True)),
    (drop('network.width'), "network lacks the key 'width'"),
    (put('command', 'rm'), "the file has the unknown key 'command'"),
    (put('network.keep', {}), "network has the unknown key 'keep'"),
    (put('network', []), 'network is []; it must be an object {name, width'),
    (put('gates', [IDS]), 'gates is [[0, 5]]; it must be an object'),
    (put('network.name', 5), 'network.name is 5; it must be a name'),
    (put('network.name', 'x' * 10**6), 'of at most 100 characters'),
    (put('network.name', UP), f"unknown network '{UP}'"),
    (put('network.name', '\x1b[2J'), r"unknown network '\x1b[2J'"),
    (put('network.name', '__class__'), "unknown network '__class__'"),
    (put('network.width', 1e9), WIDTH.format('1000000000.0')),
    (put('network.width', 10**400), 'network.width is 1000000'),
    (put('network.width', 0), WIDTH.format(0)),
    (put('network.width', -1.0), WIDTH.format(-1.0)),
    (put('network.width', True), WIDTH.format(True)),
    (put('network.width', '1.0'), WIDTH.format("'1.0'")),
    (put('network.width', None), WIDTH.format(None)),
    (put('network.classes', 10**9), CLASSES.format(10**9)),
    (put('network.classes', 0), CLASSES.format(0)),
    (put('network.classes', 10.0), CLASSES.format(10.0)),
    (put('network.classes', True), CLASSES.format(True)),
    (put('image_shape', [8, 8]), 'it must be [height, width, channels]'),
    (put('image_shape', 'abc'), "image_shape is 'abc'"),
    (put('image_shape.0', 10**9), SIDE.format(10**9)),
    (put('image_shape.1', -8), SIDE.format(-8)),
    (put('image_shape.1', 8.5), SIDE.format(8.5)),
    (put('image_shape.2', True), 'image_shape[2] is True; it must be an int'),
    (put('image_shape.2', 65), 'image_shape[2] is 65'),
    (put('image_shape', [7, 8, 1]), 'too small'),
    (huge('vgg7_digits'), 'the result may have 4,194,304 channels at most'),
    (huge('vgg16'), "up to layer 'head/fc1' the network has 138,380,"),
    (drop('gates.gate2_1'), "the file has no gate 'gate2_1'"),
    (put('gates.' + UP.replace('.', ''), IDS), 'the network has no gate'),
    (put('gates.' + 'x' * 10**6, IDS), "the network has no gate 'xxx"),
    (put('gates.gate1_1', [0, 0]), GATE.format([0, 0])),
    (put('gates.gate1_1', [5, 0]), GATE.format([5, 0])),
    (put('gates.gate1_1', [0, True]), GATE.format([0, True])),
    (put('gates.gate1_1', [0.0]), GATE.format([0.0])),
    (put('gates.gate1_1', [[0]]), GATE.format([[0]])),
    (put('gates.gate1_1', '05'), GATE.format("'05'")),
    (put('gates.gate1_1', {'0': 1}), GATE.format({'0': 1})),
    (put('gates.gate1_1', None), GATE.format(None)),
    (
      put('gates.gate1_1', [-1, 5]),
      "'gate1_1' keeps a channel outside 0 to 31",
    ),
    (put('gates.gate1_1', [32]), "'gate1_1' keeps a channel outside 0 to 31"),
    (put('gates.gate1_1', [10**4000]), 'keeps a channel outside 0 to 31'),
    (put('gates.gate1_1', list(range(10**6))), 'outside 0 to 31'),
  ],
)
def test_architecture_with_invalid_values(mutate, message, workdir):
  document = copy.deepcopy(VALID)
  mutate(document)
  (workdir / 'architecture.json').write_text(json.dumps(document))
  error = refused(workdir)
  assert message in error
  assert "architecture.json': " in error
  fixes = ('restore', 'use the release', 'models.register', 'smaller')
  assert any(fix in error for fix in fixes)


def nested(depth, brackets):
  return brackets[0] * depth + '0' + brackets[1] * depth


def text(old, new):
  """The valid file with a part of its text replaced."""
  valid = json.dumps(VALID)
  assert old in valid
  return valid.replace(old, new, 1).encode()


@pytest.mark.parametrize(
  ('content', 'message'),
  [
    (b'', 'is not JSON'),
    (b'null', 'the file is None; it must be an object'),
    (b'[1]', 'the file is [1]; it must be an object'),
    (b'{"schema_version": 2', 'is not JSON'),
    (b'\x80\x04\x95\x00.', "is not JSON ('utf-8' codec can't decode"),
    (b'\xff\xfe{\x00}\x00', "is not JSON ('utf-8' codec can't decode"),
    (text('1.0', 'NaN'), 'NaN is not a number that JSON has'),
    (text('1.0', '-Infinity'), '-Infinity is not a number'),
    (text('1.0', '1e999'), 'network.width is inf; it must be'),
    (text('1.0', '9' * 5000), 'is not JSON (Exceeds the limit'),
    (text('"width"', '"name"'), "the key 'name' is there twice"),
    (text('{', '{"gates": {}, '), "the key 'gates' is there twice"),
    (text('1.0', nested(10**4, '[]')), 'more than 32 levels of brackets'),
    (text('1.0', nested(200, '[]')), 'more than 32 levels of brackets'),
    (
      text('1.0', '{"a":' * 10**4 + '0' + '}' * 10**4),
      'more than 32 levels of brackets',
    ),
    (text('1.0', '[' + '[],' * 10**5 + '0]'), 'more than 100,000 lists'),
    (text('1.0', nested(20, '[]')), 'network.width is [[[...]]]; it must be'),
    (b'[' + b'[],' * 3 * 10**6 + b'0]', 'bytes, and such a file has 8,388,608'),
    (text('"vgg7_digits"', r'"\ud800"'), r"unknown network '\ud800'"),
  ],
  ids=range(19),
)
def test_architecture_that_is_not_valid_json(content, message, workdir):
  (workdir / 'architecture.json').write_bytes(content)
  error = refused(workdir)
  assert message in error
  assert 'restore it from a copy' in error or 'models.register' in error


def test_pipes_devices_folders_and_huge_files_are_not_read(workdir):
  """Reading a pipe or a device would not end, and gigabytes fill the memory."""
  for name in ('architecture.json', weights.FILE):
    path = workdir / name
    content = path.read_bytes()
    path.unlink()
    os.mkfifo(path)
    assert 'it is not a file' in refused(workdir)
    path.unlink()
    path.symlink_to('/dev/zero')
    assert 'it is not a file' in refused(workdir)
    path.unlink()
    path.mkdir()
    assert 'it is not a file' in refused(workdir)
    path.rmdir()
    path.write_bytes(content)
    with path.open('r+b') as file:
      file.truncate(20 * 2**30)
    assert '21,474,836,480 bytes' in refused(workdir)
    path.write_bytes(content)
  dnal_jax.load(workdir)


def test_the_largest_network_stays_within_the_limits_of_a_file(tmp_path):
  """At its largest width."""
  variant = models.get('proxyless')
  widest = limits.WIDTH
  gates = {f'gate{i}': range(60_704 * 8 // 255) for i in range(255)}
  prepared = Preprocessing((224, 224, 3), (0.1,) * 3, (0.2,) * 3, 256)
  architecture.write(
    tmp_path, 'proxyless', widest, ['x'] * variant.classes, prepared, gates
  )
  size = json_files.file_size(tmp_path / 'architecture.json')
  assert size < json_files.MAX_BYTES
  with pytest.raises(errors.UserError, match='too long a name; 100 characters'):
    models.register('x' * 101, variant)


@pytest.mark.parametrize(
  ('key', 'value', 'most'),
  [('network', 9.0, '8.0]'), ('data', 1025, '1024]')],
)
def test_a_config_has_the_limits_of_a_file(key, value, most, tmp_path):
  flag = {'network': 'network.width', 'data': 'data.image'}[key]
  message = fail_here(tmp_path / 'run', f'--config.{flag}={value}')
  assert f'{flag} is {value}; it must be in' in message
  assert message.endswith(most)


@pytest.mark.parametrize(
  ('architectures', 'weight_files'),
  [
    (300, 100),
    pytest.param(10_000, 1_000, marks=pytest.mark.long),
  ],
)
def test_mutations(architectures, weight_files, tmp_path):
  """Each is read as what it says or refused, within five seconds of CPU time,
  and memory stays below 1 GiB."""
  counts = (str(architectures), str(weight_files))
  done = subprocess.run(
    (sys.executable, ROOT / 'tests/fuzz_files.py', *counts, tmp_path),
    cwd=ROOT,
    env={**os.environ, 'PYTHONPATH': str(ROOT)},
    capture_output=True,
    text=True,
    check=False,
    timeout=1200,
  )
  assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-4000:]
  got = json.loads(done.stdout.splitlines()[-1])
  assert got['architectures'] >= architectures
  assert got['weights'] >= weight_files
  assert 0.01 < got['architectures_read'] / architectures < 0.5
  assert 0.1 < got['weights_read'] / weight_files < 0.9
  assert got['slowest_process_time'] < 5
  assert got['peak_bytes'] < 2**30, got
