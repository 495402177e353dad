"""What was saved comes back, or is refused; never something else."""

import gc
import itertools
import shutil
import time

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dnal_jax import errors
from dnal_jax.workdir.checkpoint import Checkpoints
from dnal_jax.workdir.run_state import RunState

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
    position = RunState(
      step=10 * i, keep=keep, sums={'loss': 0.1 * i, 'nan': 1e-300}
    )
    position.begin_stage('warmup', epochs=1, steps=100)
    checkpoints.save(state(i), position)
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


def test_the_newest_two_stay_and_the_best_of_the_stage(tmp_path):
  folder = tmp_path / 'checkpoints'
  position = RunState()

  def save_all(*stages):
    """Accuracies by epoch, each saved in the middle and at the end."""
    checkpoints = Checkpoints(folder)
    for name, accuracies in stages:
      position.begin_stage(name, epochs=len(accuracies), steps=99)
      for top1 in accuracies:
        position.step += 1
        checkpoints.save(state(position.number), position)
        position.end_epoch()
        position.record(loss=0.0, seconds=0.0, point=None, top1=top1)
        checkpoints.save(state(position.number), position)
      if name != 'finetune':
        position.next_stage()
    checkpoints.close()
    return sorted(int(path.name) for path in folder.iterdir())

  # Steps of an epoch are 33: the best ends at 66.
  assert save_all(('warmup', [0.5, 0.9, 0.7])) == [66, 67, 99]
  best = {'number': 66, 'stage': 'warmup', 'epoch': 2, 'validation_top1': 0.9}
  assert position.best == best
  # Of the next stage, whose beginning has a number of its own, at whatever
  # accuracy; and of equals the later.
  assert save_all(('search', [0.3, 0.3, 0.2])) == [100 + 66, 100 + 67, 199]
  assert position.best['number'] == 166
  assert save_all(('finetune', [0.8, 0.1, 0.2])) == [200 + 33, 267, 299]

  # It is what is left when both of the newest are damaged.
  for name in ('267', '299'):
    for file in (folder / name).rglob('*'):
      if file.is_file():
        file.write_bytes(file.read_bytes()[:-5])
  got, whole = newest(folder)
  assert got.number == 233
  assert equal(whole, state(233))


@pytest.mark.parametrize(
  ('its_own', 'kind', 'told'),
  [
    (False, errors.Stopped, 'or the clock has jumped'),
    (True, errors.UserError, 'an error of its own'),
  ],
)
def test_a_clock_that_leaps_during_a_save(
  its_own, kind, told, saved, tmp_path, monkeypatch
):
  """Orbax takes it for a disk that hangs; the run may be started again.

  What orbax gave up on, it goes on to write: a folder takes one such save.
  """
  folder = tmp_path / 'checkpoints'
  shutil.copytree(saved, folder)
  step = newest(folder)[0].step
  position = RunState(step=step + 1)
  position.begin_stage('warmup', epochs=1, steps=100)
  days, now = itertools.count(), time.time()

  def run():
    with monkeypatch.context() as patch, Checkpoints(folder) as checkpoints:
      patch.setattr(time, 'time', lambda: now + 86400 * next(days))
      checkpoints.save(state(step + 1), position)
      if its_own:
        raise errors.UserError(told)

  with pytest.raises(kind, match=told):
    run()
  assert newest(folder)[0].step == step


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
    assert position.step in (10, 20), name
    assert equal(got, state(position.step // 10)), name
    told = capsys.readouterr().out
    assert (f"'{folder}/20'" in told) == (position.step == 10)
    if position.step == 10:
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
