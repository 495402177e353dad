"""Several processes are one run: real sockets, real signals, real deaths."""

import json
import signal
import time

from commands import (
  SHORT,
  Processes,
  assert_same,
  command,
  fail,
  metrics,
  result,
)
import in_process
import pytest

from dnal_jax.parallel import processes

EPOCHS = 4  # of SHORT
FLAGS = (*SHORT, '--config.network.width=0.25')


def two(workdir):
  return Processes(*[command(workdir, *FLAGS)] * 2)


def finish(workdir):
  """Two processes run to the end; what each printed."""
  ended = two(workdir).ended()
  for code, out, err in ended:
    assert code == 0, (out, err)
  return [out for _, out, _ in ended]


def interrupt(workdir, line, number, to):
  """Two processes, one of which gets a signal at a line that is printed; both
  must end with the exit code and the message that go with it."""
  processes = two(workdir)
  processes.until(line)
  processes.all[to].send_signal(number)
  started = time.monotonic()
  ended = processes.ended()
  killed = number == signal.SIGKILL
  # Saved by both; or, if one was killed, noticed by the other.
  assert time.monotonic() - started < (60 if killed else 30)
  codes = [75, 75]
  codes[to] = -number if killed else 75
  assert [code for code, _, _ in ended] == codes, ended
  for code, _, err in ended:
    if code == 75:
      last = err.strip().splitlines()[-1]
      assert ('lost' if killed else 'stopped and saved in') in last, err
      assert 'the same command' in last.lower()


@pytest.fixture(scope='session')
def alone(tmp_path_factory):
  """The folder of a run of two processes that nothing has interrupted."""
  workdir = tmp_path_factory.mktemp('alone') / 'run'
  primary, other = finish(workdir)
  assert 'reference macs' in primary
  assert 'warmup' not in other
  return workdir


@pytest.mark.slow
@pytest.mark.xdist_group('hosts')
def test_two_processes_train_as_one_does(alone, tmp_path):
  """They add up the same numbers in another order, and differ by rounding."""
  in_process.run(tmp_path / 'one', *FLAGS)
  of_one, of_two = (metrics(workdir) for workdir in (tmp_path / 'one', alone))
  assert len(of_one) == len(of_two) == EPOCHS
  for key in ('loss', 'validation_loss'):
    assert of_two[0][key] == pytest.approx(of_one[0][key], rel=1e-4)
    assert of_two[1][key] == pytest.approx(of_one[1][key], rel=1e-2)


@pytest.mark.long
@pytest.mark.xdist_group('hosts')
def test_two_processes_go_on_after_one_was_killed(alone, tmp_path):
  """The other one ends with a message. Both go on to the files of the run that
  nothing has interrupted."""
  hurt = tmp_path / 'hurt'
  interrupt(hurt, 'search 2/', signal.SIGKILL, 1)
  row = json.loads((hurt / 'status.json').read_text())
  assert row['state'] == 'stopped'
  assert 'lost another one' in row['message']
  finish(hurt)
  assert_same(hurt, alone)


@pytest.mark.long
@pytest.mark.xdist_group('hosts')
def test_one_process_goes_on_where_two_were_stopped(alone, tmp_path, capsys):
  hurt = tmp_path / 'hurt'
  interrupt(hurt, 'search 2/', signal.SIGTERM, 1)
  in_process.run(hurt, *FLAGS)
  assert 'going on with' in capsys.readouterr().out
  losses, of_two = (
    [row['loss'] for row in metrics(workdir)] for workdir in (hurt, alone)
  )
  assert len(losses) == EPOCHS
  assert losses[:3] == of_two[:3]  # by two processes
  got = result(hurt)
  assert got['top1']['pruned'] == got['top1']['compact']
  assert got['learned']['macs'] < got['baseline']['macs']


@pytest.mark.long
@pytest.mark.xdist_group('hosts')
def test_two_processes_survive_signals_in_each_stage(alone, tmp_path):
  hurt = tmp_path / 'hurt'
  for line, number, to in (
    ('warmup 1/', signal.SIGTERM, 0),
    ('search 1/', signal.SIGKILL, 0),
    ('pruned to', signal.SIGTERM, 1),
  ):
    interrupt(hurt, line, number, to)
  finish(hurt)
  assert_same(hurt, alone)


@pytest.mark.slow
def test_a_folder_of_one_process_alone_is_refused(tmp_path):
  processes = Processes(
    *(command(tmp_path / name, *SHORT) for name in ('mine', 'yours'))
  )
  for code, _, err in processes.ended():
    assert code == 2
    assert 'is not seen by process 1' in err
    assert 'that all hosts share' in err


@pytest.mark.parametrize(
  ('flags', 'message'),
  [
    (('--num_processes=2',), 'cannot join the other processes'),
    (
      (
        '--coordinator_address=localhost:1',
        *('--num_processes=2', '--process_id=2'),
      ),
      'process_id',
    ),
    (('--distributed=on',), '--coordinator_address=HOST:PORT'),
    (('--distributed=off', '--process_id=0'), 'drop one of the two'),
  ],
)
def test_processes_that_cannot_be_joined(flags, message, tmp_path):
  assert message in fail(tmp_path / 'run', *flags)
  assert not (tmp_path / 'run').exists()


@pytest.mark.parametrize(
  ('environment', 'several'),
  [
    ({}, False),
    ({'SLURM_STEP_NUM_TASKS': '1'}, False),
    ({'SLURM_STEP_NUM_TASKS': '2'}, True),
    ({'OMPI_COMM_WORLD_SIZE': '4'}, True),
    ({'TPU_WORKER_HOSTNAMES': 'localhost'}, False),
    ({'TPU_WORKER_HOSTNAMES': 'a,b'}, True),
    ({'JAX_COORDINATOR_ADDRESS': 'a:1'}, True),
  ],
)
def test_environments_of_several_processes(environment, several, monkeypatch):
  names = ('SLURM_STEP_NUM_TASKS', 'OMPI_COMM_WORLD_SIZE')
  for name in (*names, 'TPU_WORKER_HOSTNAMES', 'JAX_COORDINATOR_ADDRESS'):
    monkeypatch.delenv(name, raising=False)
  for name, value in environment.items():
    monkeypatch.setenv(name, value)
  assert processes.is_cluster() is several


def test_a_single_process_is_the_primary_one():
  assert processes.is_primary()
  assert processes.allgather_json({'a': [1]}) == [{'a': [1]}]
