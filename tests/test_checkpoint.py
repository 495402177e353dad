"""What was saved comes back, or is refused; never something else."""

import gc
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dnal_jax import errors
from dnal_jax.checkpoint import Checkpoints, Position

# Of reads that orbax has begun when another one turns out to fail.
pytestmark = pytest.mark.filterwarnings(
  'ignore::pytest.PytestUnraisableExceptionWarning'
)


def state(seed):
  """Large enough for its values to have files of their own."""
  keys = jax.random.split(jax.random.key(seed), 2)
  return {
    'step': jnp.int32(seed),
    'params': {
      'a': jax.random.normal(keys[0], (3, 3, 16, 64)),
      'b': jax.random.normal(keys[1], (64,), jnp.bfloat16),
    },
    'gates': {},
  }


def like(position):
  del position
  return jax.eval_shape(lambda: state(0))


@pytest.fixture(scope='module')
def saved(tmp_path_factory):
  """Two checkpoints, of state(1) and state(2)."""
  folder = tmp_path_factory.mktemp('saved') / 'checkpoints'
  checkpoints = Checkpoints(folder)
  for i in (1, 2):
    keep = {'gate1': (0, 2, i)}
    position = Position(
      step=i, keep=keep, sums={'loss': 0.1 * i, 'nan': 1e-300}
    )
    checkpoints.save(10 * i, state(i), position)
  checkpoints.close()
  return folder


def newest(folder):
  checkpoints = Checkpoints(folder)
  try:
    return checkpoints.newest(like)
  finally:
    checkpoints.close()
    gc.collect()  # now, where the filter below holds


def equal(a, b):
  leaves = zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True)
  return all(x.dtype == y.dtype and np.array_equal(x, y) for x, y in leaves)


def test_what_was_saved_comes_back(saved):
  position, got = newest(saved)
  assert position.keep == {'gate1': (0, 2, 2)}
  assert position.sums == {'loss': 0.2, 'nan': 1e-300}
  assert equal(got, state(2))


def test_an_empty_folder_has_none(tmp_path):
  assert newest(tmp_path / 'checkpoints') is None


def damage(file, how, rng):
  content = bytearray(file.read_bytes())
  if how == 'gone':
    file.unlink()
    return
  if how == 'cut':
    content = content[: rng.integers(len(content) + 1) // 2]
  elif content:
    content[rng.integers(len(content))] ^= 1 << rng.integers(8)
  file.write_bytes(content)


@pytest.mark.parametrize('how', ['flipped', 'cut', 'gone'])
def test_a_damaged_checkpoint_never_comes_back_as_another(
  how, saved, tmp_path, capsys
):
  """Each file of the newest in turn: it comes back as it was saved, where the
  damage does not matter, or the one before does."""
  rng = np.random.default_rng(0)
  names = sorted(
    f.relative_to(saved) for f in (saved / '20').rglob('*') if f.is_file()
  )
  assert len(names) > 4
  older = 0
  for number, name in enumerate(names):
    folder = tmp_path / str(number) / 'checkpoints'
    shutil.copytree(saved, folder)
    damage(folder / name, how, rng)
    position, got = newest(folder)
    assert position.step in (1, 2), name
    assert equal(got, state(position.step)), name
    told = capsys.readouterr().out
    assert (f"'{folder}/20'" in told) == (position.step == 1)
    if position.step == 1:
      older += 1
      # The number is free again, and nothing is lost.
      assert not (folder / '20').exists()
      (aside,) = (folder.parent / 'damaged').iterdir()
      assert aside.name.startswith('20-')
  assert older >= 5


def test_nothing_whole_is_told(saved, tmp_path):
  folder = tmp_path / 'checkpoints'
  shutil.copytree(saved, folder)
  for file in folder.rglob('*'):
    if file.is_file():
      file.write_bytes(file.read_bytes()[:-5])
  with pytest.raises(errors.UserError) as told:
    newest(folder)
  assert f"'{folder}/20'" in str(told.value)
  assert f"'{folder}/10'" in str(told.value)
  assert 'start again in another --workdir' in str(told.value)
  assert sorted(f.name for f in folder.iterdir()) == ['10', '20']


def test_a_state_of_another_network_is_refused(saved):
  def wider(position):
    del position
    shapes = like(None)
    shapes['params']['a'] = jax.ShapeDtypeStruct((3, 3, 16, 65), jnp.float32)
    return shapes

  checkpoints = Checkpoints(saved)
  with pytest.raises(errors.UserError, match=r"\['a'\] is stored as \[\[3, 3"):
    checkpoints.newest(wider)
  checkpoints.close()
