"""Damaged files of JAX's cache of compiled programs are replaced."""

import warnings

import jax
from jax.experimental.compilation_cache import compilation_cache
import pytest

from dnal_jax.parallel import compile_cache


@pytest.fixture
def start(tmp_path, capsys):
  """A function that is what a process does: it sets up the cache, and compiles
  two programs. Returns what was printed. Its argument is a folder that the user
  has chosen by JAX's option."""
  names = (
    'jax_compilation_cache_dir',
    'jax_persistent_cache_min_compile_time_secs',
  )
  before = {name: jax.config.values[name] for name in names}

  def started(chosen=None):
    jax.config.update(names[0], chosen and str(chosen))
    compilation_cache.reset_cache()
    with warnings.catch_warnings():
      compile_cache.keep_in(tmp_path / 'compiled')
      jax.config.update(names[1], 0.0)
      for factor in (2, 3):  # two programs of one name

        def doubled(x, factor=factor):
          return x * factor

        for function in (doubled, lambda x: x + 1):
          jax.jit(function)(1.0)
    return capsys.readouterr().out

  yield started
  for name, value in before.items():
    jax.config.update(name, value)
  compilation_cache.reset_cache()


def content(folder):
  return {file: file.read_bytes() for file in folder.glob('*-cache')}


def cut(data):
  return data[: len(data) // 2]


def empty(data):
  del data
  return b''


def flip(data):
  """Each bit in the middle."""
  half = len(data) // 2
  return data[:half] + bytes([data[half] ^ 255]) + data[half + 1 :]


@pytest.mark.parametrize('damage', [cut, empty, flip])
def test_damaged_programs_are_reported_once_and_replaced(
  damage, start, tmp_path
):
  folder = tmp_path / 'compiled'
  assert start() == ''
  whole = content(folder)
  assert len(whole) >= 3
  assert start() == ''
  assert content(folder) == whole
  for file, data in whole.items():
    file.write_bytes(damage(data))
  (line,) = start().splitlines()
  assert f"'{folder}' is damaged" in line
  assert 'compiled again' in line
  assert content(folder).keys() == whole.keys()
  assert not any(d == damage(whole[f]) for f, d in content(folder).items())
  assert start() == ''


def test_of_a_folder_that_the_user_chose_nothing_is_deleted(start, tmp_path):
  folder = tmp_path / 'chosen'
  start(folder)
  assert not (tmp_path / 'compiled').exists()
  damaged = {file: cut(data) for file, data in content(folder).items()}
  for file, data in damaged.items():
    file.write_bytes(data)
  (line,) = start(folder).splitlines()
  assert f"'{folder}' is damaged" in line
  assert 'delete it' in line
  assert content(folder) == damaged


def test_checksums_find_what_jax_does_not(start, tmp_path):
  """Of a file in another's place or, with zstd, a flipped bit: the program is
  deleted before JAX reads it, which would crash or compute something else."""
  folder, found = tmp_path / 'compiled', []
  start()
  compile_cache.record(folder)  # JAX may still be writing
  assert not list(folder.glob('*-crc32'))
  compile_cache.record(folder, settled=0)
  whole = content(folder)
  keys = {file.name.removesuffix('-cache') for file in whole}
  assert {f.name.removesuffix('-crc32') for f in folder.glob('*-c*32')} == keys
  compile_cache.check(folder, lambda *failed: found.append(failed))
  assert not found
  file = next(iter(whole))
  file.write_bytes(flip(whole[file]))
  compile_cache.record(folder, settled=0)
  compile_cache.check(folder, lambda *failed: found.append(failed))
  ((verb, key, _),) = found
  assert (verb, f'{key}-cache') == ('reading', file.name)
  compile_cache.check(folder, compile_cache._Repairer(str(folder)))
  assert content(folder) == {f: d for f, d in whole.items() if f != file}
  assert not (folder / f'{key}-crc32').exists()
  a, b = sorted(content(folder))[:2]
  a.rename(folder / 'other')
  compile_cache.check(folder, lambda *failed: found.append(failed))
  assert len(found) == 1  # what is gone is no damage
  b.rename(a)
  b.write_bytes((folder / 'other').read_bytes())
  compile_cache.record(folder, settled=0)
  compile_cache.check(folder, lambda *failed: found.append(failed))
  assert found[1:] == [('reading', b.name.removesuffix('-cache'), found[0][2])]


def test_other_warnings_are_shown_as_before(tmp_path):
  with warnings.catch_warnings(record=True) as shown:
    warnings.simplefilter('always')
    compile_cache.keep_in(tmp_path)
    warnings.warn('another', stacklevel=1)
  assert [str(warning.message) for warning in shown] == ['another']
