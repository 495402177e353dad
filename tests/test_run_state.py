"""Where a run stands: pure changes, and the record on disk."""

import json
import math
import pathlib

import pytest

from dnal_jax import errors
from dnal_jax.workdir.run_state import Cursor, RunState

GOLDEN = pathlib.Path(__file__).parent / 'golden/version_1/stopped/checkpoints'


def steps(*losses):
  return [
    {'loss': loss, 'correct': 2.0, 'gate_sum': 10 * loss} for loss in losses
  ]


def begun():
  run = RunState(images=100).begin_stage('warmup', epochs=2, steps=6)
  return run.add_steps(steps(1.0, 2.0), 0.5)


def test_counts_of_steps_and_epochs():
  run = begun()
  assert run.cursor == Cursor(0, 0, 2)
  assert (run.stage_steps_done, run.steps_done, run.number) == (2, 2, 2)
  assert run.describe() == "'warmup', 0 of 2 epochs and 2 steps done"
  run = run.add_steps(steps(3.0), 0.25)
  assert run.sums == {
    'loss': 6.0, 'correct': 6.0, 'seconds': 0.75, 'gate_sum': 30.0
  }  # fmt: skip
  run = run.end_epoch(0.5, 2.0, 'warmup', 0.8)
  assert (run.cursor, run.sums) == (Cursor(0, 1, 0), {})
  assert (run.stage_steps_done, run.epochs_done) == (3, 1)
  assert run.describe() == "'warmup', 1 of 2 epochs done"
  run = run.add_steps(steps(1.0, 1.0, 1.0), 1.0)
  run = run.end_epoch(0.25, 1.0, 'warmup', 0.7)
  run = run.begin_stage('search', epochs=1, steps=3)
  assert run.cursor == Cursor(1, 0, 0)
  # The beginning of a stage has a number of its own.
  assert (run.stage_first_step, run.steps_done, run.number) == (6, 6, 7)
  warmup, search = run.result.stages
  assert (warmup.seconds, warmup.train_loss) == (3.0, 0.25)
  assert (search.seconds, search.train_loss) == (0.0, None)
  assert run.result.top1['warmup'] == 0.7


def test_best_epoch_is_that_of_the_last_stage_and_the_later_of_equals():
  run = RunState().begin_stage('warmup', epochs=3, steps=3)
  numbers = []
  for top1 in (0.5, 0.9, 0.9):
    run = run.add_steps(steps(1.0), 0.0).end_epoch(1.0, 0.0, None, top1)
    numbers.append(run.result.best['number'])
  assert numbers == [1, 2, 3]
  run = run.begin_stage('search', epochs=2, steps=2)
  for top1 in (0.2, 0.1):
    run = run.add_steps(steps(1.0), 0.0).end_epoch(1.0, 0.0, None, top1)
    assert run.result.best == {
      'number': 5, 'stage': 'search', 'epoch': 1, 'validation_top1': 0.2
    }  # fmt: skip


def test_nothing_changes_a_state_in_place():
  run = begun()
  record = json.dumps(run.to_json())
  run.add_steps(steps(1.0), 1.0).end_epoch(1.0, 1.0, 'warmup', 0.5)
  run.begin_stage('search', 1, 3)
  run.prune({'a': (1,)}, masked_top1=0.5, pruned_top1=0.5, max_abs_diff=0.0)
  assert json.dumps(run.to_json()) == record


def test_record_on_disk_is_read_back():
  run = begun().prune(
    {'a': (0, 2)}, masked_top1=0.5, pruned_top1=0.5, max_abs_diff=1e-7
  )
  again = RunState.from_json(json.loads(json.dumps(run.to_json())))
  assert again.keep == {'a': (0, 2)}
  assert json.dumps(again.to_json()) == json.dumps(run.to_json())
  assert again.cursor == run.cursor
  assert again.result == run.result


@pytest.mark.parametrize('number', [35, 45])
def test_record_of_the_first_version_is_read_and_written_alike(number):
  """Orbax stores the JSON item as a file of its own."""
  item = json.loads((GOLDEN / str(number) / 'position/metadata').read_text())
  record = item['position']
  written = json.loads(json.dumps(RunState.from_json(record).to_json()))
  assert written == {**record, 'closed_epochs': {}}


def test_restart_halves_the_rates_of_the_failed_attempt():
  saved = begun()
  once = saved.restart_after(saved.add_steps(steps(9.0), 0.0))
  twice = saved.restart_after(once)
  assert [(r.lr_factor, r.result.rollbacks) for r in (once, twice)] == [
    (0.5, 1),
    (0.25, 2),
  ]
  assert once.cursor == saved.cursor
  assert math.isclose(once.begin_stage('x', 1, 1).lr_factor, 1.0)


def test_changed_data_is_refused():
  begun().check_data('digits', 100)
  with pytest.raises(errors.UserError, match=r"'digits' had 100 .* it has 99"):
    begun().check_data('digits', 99)


def test_broken_records_of_another_number_of_processes_are_joined():
  run = RunState(broken=({'train': [3]}, {'train': [1, 3]}))
  assert run.broken_records(1, 2) == {'train': [1, 3]}
  assert run.broken_records(0, 3) == {'train': [1, 3]}
  assert RunState().broken_records(0, 1) == {}
