"""A checkpoint restores exactly what was saved, or is refused."""

import dataclasses
import gc
import itertools
import json
import shutil
import time

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dnal_jax import errors
from dnal_jax.training import train_state
from dnal_jax.workdir.checkpoint import Checkpoints
from dnal_jax.workdir.run_state import Cursor, RunState

# Orbax abandons the reads that are under way when one of them fails.
IGNORED = 'ignore::pytest.PytestUnraisableExceptionWarning'
pytestmark, LONG = pytest.mark.filterwarnings(IGNORED), pytest.mark.long
HOW = 'flipped', *(pytest.param(h, marks=LONG) for h in ('cut', 'gone'))


def state(seed):
  """Arrays that are large enough for tensorstore to give them own files."""
  keys = jax.random.split(jax.random.key(seed), 2)
  return {
    'step': jnp.int32(seed),
    'params': {
      'a': jax.random.normal(keys[0], (3, 3, 16, 64)),
      'b': jax.random.normal(keys[1], (64,), jnp.bfloat16),
    },
    'gates': {},
  }


def like(run):
  del run
  return jax.eval_shape(lambda: state(0))


def run_at(step, **values):
  """A run with so many steps of its first epoch done."""
  run = RunState(**values).begin_stage('warmup', epochs=1, steps=100)
  return dataclasses.replace(run, cursor=Cursor(step=step))


def step_of(run_and_state):
  return run_and_state[0].cursor.step


@pytest.fixture(scope='module')
def saved(tmp_path_factory):
  """Two checkpoints, of state(1) and state(2)."""
  folder = tmp_path_factory.mktemp('saved') / 'checkpoints'
  checkpoints = Checkpoints(folder)
  for i in (1, 2):
    checkpoints.save(
      state(i),
      run_at(
        10 * i,
        keep={'gate1': (0, 2, i)},
        sums={'loss': 0.1 * i, 'nan': 1e-300},
      ),
    )
  checkpoints.close()
  return folder


def newest(folder):
  checkpoints = Checkpoints(folder)
  try:
    return checkpoints.newest(like)
  finally:
    checkpoints.close()
    gc.collect()  # while the filter above applies


def equal(a, b):
  leaves = zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True)
  return all(x.dtype == y.dtype and np.array_equal(x, y) for x, y in leaves)


def test_restores_what_was_saved(saved):
  run, got = newest(saved)
  assert run.keep == {'gate1': (0, 2, 2)}
  assert run.sums == {'loss': 0.2, 'nan': 1e-300}
  assert equal(got, state(2))


def test_an_empty_folder_has_no_checkpoint(tmp_path):
  assert newest(tmp_path / 'checkpoints') is None


def test_keeps_the_latest_two_and_the_best_of_the_stage(tmp_path):
  folder = tmp_path / 'checkpoints'
  run = RunState()
  one_step = [{'loss': 1.0, 'correct': 1.0, 'gate_sum': 0.0}]

  def save_all(name, accuracies):
    """Accuracies by epoch, each saved in the middle and at the end."""
    nonlocal run
    checkpoints = Checkpoints(folder)
    run = run.begin_stage(name, epochs=len(accuracies), steps=99)
    for top1 in accuracies:
      run = run.add_steps(one_step, seconds=0.0)
      checkpoints.save(state(run.number), run)
      run = run.end_epoch(loss=0.0, seconds=0.0, point=None, top1=top1)
      checkpoints.save(state(run.number), run)
    checkpoints.close()
    return sorted(int(path.name) for path in folder.iterdir())

  # An epoch has 33 steps, so the best one ends at 66.
  assert save_all('warmup', [0.5, 0.9, 0.7]) == [66, 67, 99]
  best = {'number': 66, 'stage': 'warmup', 'epoch': 2, 'validation_top1': 0.9}
  assert run.result.best == best
  # The best of the stage before gives way whatever its accuracy. The beginning
  # of a stage has a number of its own. Of equals the later stays.
  assert save_all('search', [0.3, 0.3, 0.2]) == [100 + 66, 100 + 67, 199]
  assert run.result.best['number'] == 166
  assert save_all('finetune', [0.8, 0.1, 0.2]) == [200 + 33, 267, 299]

  # With the latest two damaged, the best is restored.
  for name in ('267', '299'):
    for file in (folder / name).rglob('*'):
      if file.is_file():
        file.write_bytes(file.read_bytes()[:-5])
  run, restored = newest(folder)
  assert run.number == 233
  assert equal(restored, state(233))


@pytest.mark.parametrize(
  ('body_fails', 'kind', 'message'),
  [
    (False, errors.Stopped, 'or the clock has jumped'),
    (True, errors.UserError, 'the error of the body'),
  ],
)
def test_clock_jumps_during_a_save(
  body_fails, kind, message, saved, tmp_path, monkeypatch
):
  """Orbax takes it for a disk that does not respond, and the run can be started
  again.

  Orbax goes on to write the checkpoint after its timeout, so one folder allows
  one such save.
  """
  folder = tmp_path / 'checkpoints'
  shutil.copytree(saved, folder)
  step = step_of(newest(folder))
  days, now = itertools.count(), time.time()

  def run():
    with monkeypatch.context() as patch, Checkpoints(folder) as checkpoints:
      patch.setattr(time, 'time', lambda: now + 86400 * next(days))
      checkpoints.save(state(step + 1), run_at(step + 1))
      if body_fails:
        raise errors.UserError(message)

  with pytest.raises(kind, match=message):
    run()
  assert step_of(newest(folder)) == step


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


def test_a_flipped_bit_that_makes_orbax_raise_something_else(saved, tmp_path):
  """Of the name of a key of its metadata: an AttributeError of orbax."""
  folder = tmp_path / 'checkpoints'
  shutil.copytree(saved, folder)
  file = folder / '20/state/array_metadatas/process_0'
  content = file.read_bytes()
  assert b'"array_metadata"' in content
  file.write_bytes(content.replace(b'array_metadata"', b'array_metadate"'))
  assert step_of(newest(folder)) == 10


@pytest.mark.parametrize('how', HOW)
def test_a_damaged_checkpoint_never_restores_other_values(
  how, saved, tmp_path, capsys
):
  """Damages each file of the newest checkpoint in turn: it restores what was
  saved, where the damage does not matter, or the one before it is restored."""
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
    run, got = newest(folder)
    step = run.cursor.step
    assert step in (10, 20), name
    assert equal(got, state(step // 10)), name
    printed = capsys.readouterr().out
    assert (f"'{folder}/20'" in printed) == (step == 10)
    if step == 10:
      older += 1
      # Its number is free again, and its files are kept.
      assert not (folder / '20').exists()
      (aside,) = (folder.parent / 'damaged').iterdir()
      assert aside.name.startswith('20-')
  assert older >= 5


def test_all_checkpoints_damaged(saved, tmp_path):
  folder = tmp_path / 'checkpoints'
  shutil.copytree(saved, folder)
  for file in folder.rglob('*'):
    if file.is_file():
      file.write_bytes(file.read_bytes()[:-5])
  with pytest.raises(errors.UserError) as raised:
    newest(folder)
  message = str(raised.value)
  assert f"'{folder}/20'" in message
  assert f"'{folder}/10'" in message
  assert 'start again in another --workdir' in message
  assert sorted(f.name for f in folder.iterdir()) == ['10', '20']


def wider(run):
  """Shapes of another network than the one that was saved."""
  shapes = like(run)
  shapes['params']['a'] = jax.ShapeDtypeStruct((3, 3, 16, 65), jnp.float32)
  return shapes


def buggy(run):
  """A mistake of this package, as `train.py` might make it."""
  raise TypeError(run.keep)


@pytest.mark.parametrize(
  ('wrong', 'kind', 'message'),
  [
    (
      wider,
      errors.UserError,
      r"/20': \['params'\]\['a'\] is stored as \[\[3, 3",
    ),
    (buggy, TypeError, 'gate1'),
    (lambda run: run.shapes, AttributeError, 'shapes'),
    (lambda run: {}[run.cursor.step], KeyError, '20'),
  ],
  ids=['shapes', 'TypeError', 'AttributeError', 'KeyError'],
)
def test_wrong_shapes_and_bugs_move_no_checkpoint(
  wrong, kind, message, saved, tmp_path, capsys
):
  """They are no damage: the error is raised, and the checkpoints stay."""
  folder = tmp_path / 'checkpoints'
  shutil.copytree(saved, folder)
  checkpoints = Checkpoints(folder)
  with pytest.raises(kind, match=message):
    checkpoints.newest(wrong)
  checkpoints.close()
  assert sorted(f.name for f in folder.iterdir()) == ['10', '20']
  assert [f.name for f in tmp_path.iterdir()] == ['checkpoints']
  assert 'damaged' not in capsys.readouterr().out
  assert equal(newest(folder)[1], state(2))


def test_gate_logits_are_stored_under_the_name_of_version_1(tmp_path):
  """Whose train state had them in the field `logits`; a parameter of the same
  name keeps its own."""

  def begin(value):
    params = {'gate_logits': jnp.full(2, 2 * value)}
    return train_state.TrainState(
      jnp.int32(0), params, {'gate1': jnp.full(3, value)}, {}, ()
    )

  folder = tmp_path / 'checkpoints'
  with Checkpoints(folder) as checkpoints:
    checkpoints.save(begin(1.5), run_at(0))
  stored = json.loads((folder / '0/position/metadata').read_text())
  assert stored['leaves'].keys() == {
    *('.step', ".params['gate_logits']", ".logits['gate1']"),
  }
  with Checkpoints(folder) as checkpoints:
    _, restored = checkpoints.newest(
      lambda run: jax.eval_shape(lambda: begin(0.0))
    )
  assert equal(restored, begin(1.5))
