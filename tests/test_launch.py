"""launch/slurm.sh and sweep.sh, with stand-ins that start processes."""

import os
import re
import signal
import socket
import sys

from commands import KEYS, ROOT, SHORT, result
from launching import STAND_INS, Launch, script, until
import pytest

QUICK = {'CONFIG': 'configs/quickstart.py'}
TRAINER = str(STAND_INS / 'worker/python')


# Slurm.


@pytest.fixture
def slurm(tmp_path):
  return Launch(
    'slurm.sh',
    ROOT,
    tmp_path / 'state',
    WORKDIR=str(tmp_path / 'run'),
    SLURM_JOB_ID='7',
    PYTHON=sys.executable,
    **QUICK,
  )


def plays(slurm, line):
  """Both processes of the job do this instead of training."""
  for i in range(2):
    script(slurm.state / f'script{i}', line)
  slurm.env['PYTHON'] = TRAINER


@pytest.mark.parametrize(
  ('variables', 'parts'),
  [
    ({'CONFIG': ''}, ('CONFIG is not set', 'sbatch')),
    ({'WORKDIR': ''}, ('WORKDIR is not set', 'sbatch')),
    ({'SLURM_JOB_ID': ''}, ('SLURM_JOB_ID', 'use sbatch')),
    ({'PYTHON': 'none'}, ("PYTHON is 'none'", 'not executable')),
    ({'REQUEUES': 'x'}, ("REQUEUES is 'x'", 'number')),
  ],
)
def test_slurm_mistakes(variables, parts, slurm):
  message = slurm.refuses(**variables)
  assert all(part in message for part in parts), message


def test_slurm_unknown_argument(slurm):
  assert "unknown argument '--x'" in slurm.refuses('--x')


def test_slurm_requests_the_options_that_it_relies_on():
  text = (ROOT / 'launch/slurm.sh').read_text()
  options = re.findall(r'^#SBATCH (--\S+)$', text, re.M)
  assert '--ntasks-per-node=1' in options
  assert '--signal=TERM@120' in options  # without B: the steps, not the shell
  assert {'--requeue', '--open-mode=append'} <= set(options)
  # sbatch ignores options after the first command.
  assert text.rindex('#SBATCH') < text.index('\nset -euo')


@pytest.mark.parametrize(
  ('code', 'restarts', 'requeued'),
  [(0, '0', False), (3, '0', False), (75, '0', True), (75, '20', False)],
)
def test_slurm_requeues_after_75(code, restarts, requeued, slurm):
  plays(slurm, code)
  done = slurm.run(SLURM_RESTART_COUNT=restarts)
  assert done.returncode == code, done.stderr
  assert slurm.calls()[1:] == ['scontrol requeue 7'] * requeued


def test_slurm_cancelled_job_saves_and_is_not_requeued(slurm):
  plays(slurm, 'sleep')
  process = slurm.start()
  until((slurm.state / 'script0.asleep').exists)
  until((slurm.state / 'script1.asleep').exists)
  process.send_signal(signal.SIGTERM)  # to the shell, which forwards it
  process.communicate(timeout=60)
  assert process.returncode == 75
  assert len(slurm.calls()) == 1


def test_slurm_process_takes_all_gpus_of_its_node(slurm):
  echo = 'echo "$JAX_LOCAL_DEVICE_IDS $SRUN_CPUS_PER_TASK"'
  python = slurm.state / 'python'
  python.write_text(f'#!/usr/bin/env bash\n{echo}\n')
  python.chmod(0o755)
  slurm.env['PYTHON'] = str(python)
  done = slurm.run(SLURM_GPUS_ON_NODE='4', SLURM_CPUS_PER_TASK='16')
  assert done.stdout.splitlines() == ['0,1,2,3 16'] * 2


@pytest.mark.long
def test_slurm_two_tasks_train_to_the_end(slurm, tmp_path):
  """Signalled once, as before the time limit; Slurm then restarts the job."""
  slurm.env.update(PYTHON=TRAINER, SLURM_JOB_ID=job_of_a_free_port())
  rows = tmp_path / 'run/metrics.jsonl'
  process = slurm.start('--', *SHORT)
  until(lambda: rows.exists() and rows.read_text(), seconds=300)
  for i in range(2):
    os.kill(int((slurm.state / f'pid{i}').read_text()), signal.SIGTERM)
  _, err = process.communicate()
  assert process.returncode == 75, err
  assert slurm.calls()[1:] == [f'scontrol requeue {slurm.env["SLURM_JOB_ID"]}']
  done = slurm.run('--', *SHORT, SLURM_RESTART_COUNT='1')
  assert done.returncode == 0, done.stderr
  assert done.stdout.count('going on with') == 1
  assert done.stdout.count('reference macs') == 1
  assert set(result(tmp_path / 'run')) == KEYS


def job_of_a_free_port():
  """JAX derives the port of its coordinator from the number of the job."""
  for job in range(1000, 5000):
    with socket.socket() as probe:
      try:
        probe.bind(('', 61440 + job % 4096))
      except OSError:
        continue
    return str(job)
  raise AssertionError('no port is free')


# Sweeps.


@pytest.fixture
def sweep(tmp_path):
  return Launch(
    'sweep.sh',
    ROOT,
    tmp_path / 'state',
    WORKDIR=str(tmp_path / 'runs'),
    PYTHON=sys.executable,
    **QUICK,
  )


@pytest.mark.parametrize(
  'value', ['-1', 'nan', 'inf', '1e', 'x', '1,5', '', '1 2', '--config.seed=1']
)
def test_sweep_refuses_what_is_no_number(value, sweep, tmp_path):
  message = sweep.refuses('5e-5', value)
  assert f"lambda '{value}'" in message
  assert 'such as 5e-5' in message
  assert not (tmp_path / 'runs').exists()


@pytest.mark.parametrize(
  ('arguments', 'variables', 'part'),
  [
    ((), {}, 'no LAMBDA given'),
    (('--', '--config.seed=1'), {}, 'no LAMBDA given'),
    (('1',), {'CONFIG': ''}, 'CONFIG is not set'),
    (('1',), {'WORKDIR': ''}, 'WORKDIR is not set'),
    (('1',), {'PYTHON': 'none'}, "PYTHON is 'none'"),
  ],
)
def test_sweep_mistakes(arguments, variables, part, sweep):
  assert part in sweep.refuses(*arguments, **variables)


@pytest.mark.long
def test_sweep_in_which_one_run_fails(sweep, tmp_path):
  """A lambda that is too large for a number is a user error; the next run
  still starts, and the one behind it begins with its warm-up. Test accuracy is
  shown for the best on validation. The same command then skips the finished
  runs."""
  done = sweep.run('1e999', '5e-2', '4e-2', '--', *SHORT)
  assert done.returncode == 1, done.stderr
  folder = tmp_path / 'runs'
  names = [path.name for path in folder.iterdir()]
  assert sorted(names) == ['lambda_4e-2', 'lambda_5e-2']
  head, *rows = done.stdout.splitlines()[-4:]
  columns = ['lambda', 'macs', 'params', 'validation', 'test', 'top-1']
  assert head.split() == columns
  assert rows[0].split() == ['1e999', *['failed', 'with', 'exit', 'code', '2']]
  found = {name: result(folder / f'lambda_{name}') for name in ('5e-2', '4e-2')}
  best = max(found, key=lambda name: found[name]['top1']['final'])
  for row, (name, one) in zip(rows[1:], found.items(), strict=True):
    assert row.split() == [
      name,
      f'{one["learned"]["macs"]:,}',
      f'{one["learned"]["params"]:,}',
      f'{one["top1"]["final"]:.2%}',
      *([f'{one["test_top1"]:.2%}'] if name == best else []),
    ]
  assert found['4e-2']['init_from'] == str(folder / 'lambda_5e-2')
  again = sweep.run('5e-2', '4e-2', '--', *SHORT)
  assert again.returncode == 0
  assert again.stdout.splitlines()[-2:] == rows[1:]
  assert done.stdout.count('warmup 1/1') == 1
  assert 'warmup 1/1' not in again.stdout


@pytest.mark.parametrize('number', [signal.SIGINT, signal.SIGTERM])
def test_stopped_sweep_has_its_run_save_and_starts_no_other(number, sweep):
  script(sweep.state / 'script', 'sleep', 'sleep')
  process = sweep.start('1', '2', PYTHON=TRAINER)
  until((sweep.state / 'script.asleep').exists)
  os.killpg(process.pid, number)
  out, err = process.communicate(timeout=60)
  assert process.returncode == 75, err
  assert 'the same command' in err
  assert out == 'lambda 1\n'


def test_docs_name_every_script():
  """And no other; all of them are executable."""
  page = (ROOT / 'docs' / 'distributed.md').read_text()
  named = set(re.findall(r'^[A-Z].* launch/(\w+\.sh)', page, re.M))
  scripts = {path.name: path for path in (ROOT / 'launch').glob('*.sh')}
  assert named == set(scripts)
  assert all(os.access(path, os.X_OK) for path in scripts.values())
