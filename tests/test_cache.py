"""The cache of arrays: what is read is what was written, or nothing."""

import os
import pathlib

import numpy as np
import pytest

from dnal_jax.data import cache

KINDS = {'images': ('uint8', 'nhw1'), 'labels': ('int64', 'n')}
ARRAYS = {
  'images': np.arange(6 * 3 * 3, dtype=np.uint8).reshape(6, 3, 3, 1),
  'labels': np.arange(6),
}


@pytest.fixture
def file(tmp_path):
  """A file of the cache."""
  path = tmp_path / 'cache/digits-1.npz'
  cache.write(path, ARRAYS)
  return path


def is_read(file, kinds=KINDS):
  """Whether the arrays are read; no others may be."""
  arrays = cache.read(file, kinds)
  if arrays is None:
    return False
  assert arrays.keys() == ARRAYS.keys()
  for name, array in ARRAYS.items():
    np.testing.assert_array_equal(arrays[name], array, strict=True)
  return True


def test_arrays_are_read_as_they_were_written(file):
  assert is_read(file)
  assert [path.name for path in file.parent.iterdir()] == ['digits-1.npz']
  assert not is_read(file.with_name('missing.npz'))


def test_a_file_cut_anywhere_is_ignored_and_written_again(file):
  whole = file.read_bytes()
  for size in (*range(0, len(whole), 7), len(whole) - 1):
    file.write_bytes(whole[:size])
    assert not is_read(file), size
  cache.write(file, ARRAYS)
  assert is_read(file)


def test_a_file_with_a_flipped_bit_is_ignored_or_harmless(file):
  whole = file.read_bytes()
  for at in range(0, len(whole), 3):
    damaged = bytearray(whole)
    damaged[at] ^= 1 << at % 8
    file.write_bytes(damaged)
    is_read(file)


@pytest.mark.parametrize(
  'content', [b'', b'PK', b'nonsense', bytes(10**4)], ids=range(4)
)
def test_what_is_no_such_file_is_ignored(content, file):
  file.write_bytes(content)
  assert not is_read(file)
  with file.open('wb') as npy:
    np.save(npy, ARRAYS['images'])
  assert not is_read(file)
  file.unlink()
  file.mkdir()
  assert not is_read(file)


def test_an_array_that_claims_to_be_huge_is_ignored(file):
  np.savez(file, name=np.array(file.stem), **ARRAYS)
  size, huge = b"'shape': (6,), }", b"'shape': (6" + b'9' * 15 + b',), }'
  content = file.read_bytes()
  assert content.count(size) == 1
  start = content.index(size)
  padding = b' ' * (len(huge) - len(size))
  assert content[start + len(size) :].startswith(padding)
  end = start + len(huge)
  file.write_bytes(content[:start] + huge + content[end:])
  assert not is_read(file)


def test_a_renamed_file_is_ignored(file):
  """As two files that were swapped are."""
  file.rename(file.with_name('digits-2.npz'))
  assert not is_read(file.with_name('digits-2.npz'))
  file.with_name('digits-2.npz').rename(file)
  assert is_read(file)
  np.savez(file, allow_pickle=False, **ARRAYS)  # as earlier versions wrote it
  assert not is_read(file)


@pytest.mark.parametrize(
  'change',
  [
    {'labels': np.arange(6.0)},
    {'labels': np.arange(5)},
    {'labels': np.arange(6)[:, None]},
    {'images': ARRAYS['images'].repeat(3, -1)},
    {'more': np.arange(6)},
  ],
  ids=range(5),
)
def test_arrays_of_another_kind_are_ignored(change, file):
  cache.write(file, {**ARRAYS, **change})
  assert not is_read(file)
  cache.write(file, {'labels': ARRAYS['labels']})
  assert not is_read(file)


def test_a_disk_that_is_full_leaves_nothing_behind(tmp_path, capsys):
  """/dev/full, which is a full disk, in place of the file that is written."""
  if not pathlib.Path('/dev/full').exists():
    pytest.skip('no /dev/full')
  file = tmp_path / 'digits-1.npz'
  part = file.with_name(f'digits-1.{os.getpid()}.npz')
  part.symlink_to('/dev/full')
  cache.write(file, ARRAYS)
  assert 'the next start reads the data again' in capsys.readouterr().out
  assert not list(tmp_path.iterdir())
