"""Several processes are one run: real sockets, real signals, real deaths."""

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
  succeed,
)
import pytest

from dnal_jax.parallel import processes

# Seven epochs in all.
STAGES = (
  '--config.stages.warmup.epochs=3',
  '--config.stages.search.epochs=2',
  '--config.stages.finetune.epochs=2',
)


def two(workdir, *flags):
  return Processes(*[command(workdir, *STAGES, *flags)] * 2)


@pytest.mark.slow
def test_two_processes_survive_what_befalls_one(tmp_path):
  """A signal to one stops both at the same step; the death of one ends the
  other, which says so; and what comes of it all is what two left alone give."""
  alone, hurt = tmp_path / 'alone', tmp_path / 'hurt'
  for code, out, err in (ended := two(alone).ended()):
    assert code == 0, (out, err)
  (_, printed, _), (_, silent, _) = ended
  assert 'reference macs' in printed
  assert 'warmup' not in silent

  for number, line, to, code in (
    (signal.SIGTERM, 'warmup 1/', 1, 75),
    (signal.SIGTERM, 'search 1/', 0, 75),
    (signal.SIGKILL, 'search 2/', 0, -9),
    (signal.SIGTERM, 'finetune 1/', 1, 75),
  ):
    processes = two(hurt)
    processes.until(line)
    processes.all[to].send_signal(number)
    started = time.monotonic()
    ended = processes.ended()
    # Saved by both; or, of one that was killed, seen by the other.
    assert time.monotonic() - started < (60 if code == -9 else 30)
    codes = [0, 0]
    codes[to], codes[1 - to] = code, 75
    assert [code for code, _, _ in ended] == codes, ended
    for code, _, err in ended:
      if code == 75:
        last = err.strip().splitlines()[-1]
        told = 'stopped and saved in' if number != signal.SIGKILL else 'lost'
        assert told in last, err
        assert 'the same command' in last.lower()
  for code, out, err in two(hurt).ended():
    assert code == 0, (out, err)
  assert_same(hurt, alone)


@pytest.mark.slow
def test_two_processes_begin_and_one_goes_on(tmp_path):
  workdir = tmp_path / 'run'
  processes = two(workdir)
  processes.until('search 1/')
  processes.all[1].kill()
  (code, _, err), _ = processes.ended()
  assert code == 75
  assert 'lost another one' in err
  before = metrics(workdir)
  assert 'going on with' in succeed(workdir, *STAGES)
  rows = metrics(workdir)
  assert len(rows) == 7
  assert [r['loss'] for r in rows[: len(before)]] == pytest.approx(
    [r['loss'] for r in before], rel=1e-3
  )
  got = result(workdir)
  assert got['top1']['pruned'] == got['top1']['compact']
  assert got['learned']['macs'] < got['baseline']['macs']


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
  ('flags', 'told'),
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
def test_others_that_cannot_be_joined(flags, told, tmp_path):
  assert told in fail(tmp_path / 'run', *flags)
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
def test_what_tells_of_others(environment, several, monkeypatch):
  names = ('SLURM_STEP_NUM_TASKS', 'OMPI_COMM_WORLD_SIZE')
  for name in (*names, 'TPU_WORKER_HOSTNAMES', 'JAX_COORDINATOR_ADDRESS'):
    monkeypatch.delenv(name, raising=False)
  for name, value in environment.items():
    monkeypatch.setenv(name, value)
  assert processes.is_cluster() is several


def test_one_process_is_everyone():
  assert processes.is_primary()
  assert processes.allgather_json({'a': [1]}) == [{'a': [1]}]
