"""launch/tpu_vm.sh, with a stand-in for gcloud that starts real processes."""

import json
import os
import shlex
import shutil
import signal

from commands import KEYS, ROOT, SHORT, metrics, result
from launching import Launch, checkout, script, until
import pytest

GIVEN = {
  'PROJECT': 'my-project',
  'ZONE': 'us-west4-a',
  'CONFIG': 'configs/quickstart.py',
  'BUCKET': 'my-bucket',
  'NAME': 'my-tpu',
  'PAUSES': '0 0 0',
}


@pytest.fixture(scope='module')
def root(tmp_path_factory):
  return checkout(tmp_path_factory.mktemp('checkout'))


@pytest.fixture
def tpu(root, tmp_path):
  launch = Launch('tpu_vm.sh', root, tmp_path / 'state', **GIVEN)
  launch.env['FETCH_TO'] = str(tmp_path / 'fetched')
  return launch


def verbs(tpu):
  return [line.split()[3] for line in tpu.calls()]


def plays(tpu, *workers):
  """Each worker's runs do this instead of training, one line per start."""
  for i, lines in enumerate(workers):
    script(tpu.state / f'vm{i}/script', *lines)


def saved(tpu):
  """Makes a run folder in the bucket, as an earlier start leaves it."""
  folder = tpu.state / 'bucket/runs/my-tpu'
  folder.mkdir(parents=True)
  (folder / 'config.json').write_text('{}')


def test_print_equals_the_golden_file(tpu):
  """Every command, quoted; change the file if a command is meant to change."""
  flags = ('--config.penalty=5e-5', "--config.order=('warmup','search')")
  environment = {'SPOT': '1', 'DATA': '../bucket/tfds', 'FETCH_TO': 'runs'}
  done = tpu.run('--print', '--', *flags, **environment)
  assert done.returncode == 0, done.stderr
  assert done.stdout == (ROOT / 'tests/golden/tpu_vm.txt').read_text()
  assert not tpu.calls()


@pytest.mark.parametrize(
  ('variables', 'part'),
  [
    ({'PROJECT': ''}, 'PROJECT is not set'),
    ({'ZONE': ''}, 'ZONE is not set'),
    ({'CONFIG': ''}, 'CONFIG is not set'),
    ({'CONFIG': 'configs/none.py'}, "no file 'configs/none.py'"),
    ({'NAME': 'My TPU'}, "NAME is 'My TPU'"),
    ({'BUCKET': 'gs://b'}, "BUCKET is 'gs://b'"),
    ({'WORKDIR': '/tmp/run'}, "WORKDIR is '/tmp/run'"),
    ({'WORKDIR': 'runs/../..'}, "WORKDIR is 'runs/../..'"),
    ({'ZONE': 'a; rm -r b'}, "ZONE is 'a; rm -r b'"),
    ({'SPOT': 'yes'}, "SPOT is 'yes'"),
    ({'RETRIES': '-1'}, "RETRIES is '-1'"),
    ({'PAUSES': 'now'}, "PAUSES is 'now'"),
  ],
)
def test_mistakes_create_nothing(variables, part, tpu):
  assert part in tpu.refuses(**variables)
  assert part in tpu.refuses('--print', **variables)


def test_unknown_argument(tpu):
  assert "unknown argument '--config.seed=1'" in tpu.refuses('--config.seed=1')


def test_no_gcloud(tpu, tmp_path):
  (tmp_path / 'bin').mkdir()
  for name in ('bash', 'git'):
    (tmp_path / 'bin' / name).symlink_to(str(shutil.which(name)))
  message = tpu.refuses(PATH=str(tmp_path / 'bin'))
  assert 'gcloud is not on PATH' in message


def test_an_existing_machine_is_left_alone(tpu):
  (tpu.state / 'machine').touch()
  done = tpu.run()
  assert done.returncode == 2
  assert done.stderr.startswith("error: NAME is 'my-tpu', a TPU that exists")
  assert verbs(tpu) == ['describe']
  assert (tpu.state / 'machine').exists()


def test_calls_are_those_printed(tpu):
  saved(tpu)
  plays(tpu, [0], [0])
  done = tpu.run('--', '--config.seed=1')
  assert done.returncode == 0, done.stderr
  printed = tpu.run('--print', '--', '--config.seed=1').stdout.splitlines()
  ours = [shlex.split(line) for line in printed]
  assert [' '.join(a[1:]) for a in ours if a[0] == 'gcloud'] == tpu.calls()[1:]
  assert verbs(tpu) == [
    *('describe', 'create', 'scp', 'ssh', 'ssh', 'scp', 'delete')
  ]
  assert not (tpu.state / 'machine').exists()


@pytest.mark.parametrize(
  ('fails', 'called'),
  [
    ('create', ['create', 'delete']),
    ('scp', ['create', 'scp', 'delete']),
  ],
)
def test_exit_code_of_a_failed_command_and_no_machine_left(fails, called, tpu):
  done = tpu.run(STAND_IN_FAIL=fails)
  assert done.returncode == 5, done.stderr
  assert verbs(tpu) == ['describe', *called]
  assert not (tpu.state / 'machine').exists()


def test_failed_worker(tpu, tmp_path):
  plays(tpu, [0], [3])
  assert tpu.run().returncode == 3
  assert verbs(tpu) == ['describe', 'create', 'scp', 'ssh', 'ssh', 'delete']
  assert not list((tmp_path / 'fetched').iterdir())


@pytest.mark.parametrize(
  ('codes', 'starts', 'code'), [([75, 0], 2, 0), ([75] * 9, 3, 75)]
)
def test_stopped_runs_resume_and_are_fetched(
  codes, starts, code, tpu, tmp_path
):
  saved(tpu)
  plays(tpu, codes, codes)
  assert tpu.run(RETRIES='2').returncode == code
  training = ['ssh'] * starts
  assert verbs(tpu)[4:] == [*training, 'scp', 'delete']
  assert (tmp_path / 'fetched/my-tpu/config.json').exists()
  assert not (tpu.state / 'machine').exists()


@pytest.mark.parametrize(
  ('number', 'code'), [(signal.SIGINT, 130), (signal.SIGTERM, 143)]
)
def test_signal_during_the_run(number, code, tpu):
  plays(tpu, ['sleep'], ['sleep'])
  process = tpu.start()
  until((tpu.state / 'vm0/script.asleep').exists)
  until((tpu.state / 'vm1/script.asleep').exists)
  os.killpg(process.pid, number)
  _, err = process.communicate(timeout=60)
  assert process.returncode == code, err
  assert verbs(tpu)[-1] == 'delete'
  pids = (tpu.state / 'pids').read_text().split()
  assert len(pids) == 4  # two of the installation, two of the run
  until(lambda: not any(map(alive, pids)))


def alive(pid):
  """Whether there is a process with that id that is not a zombie."""
  try:
    with open(f'/proc/{pid}/stat') as file:
      return file.read().rpartition(')')[2].split()[0] != 'Z'
  except FileNotFoundError:
    return False


def test_ctrl_c_while_the_machine_is_created(tpu):
  process = tpu.start(STAND_IN_FAIL='slow_create')
  until((tpu.state / 'machine').exists)
  os.killpg(process.pid, signal.SIGINT)
  process.communicate(timeout=60)
  assert process.returncode == 130
  assert verbs(tpu) == ['describe', 'create', 'delete']
  assert not (tpu.state / 'machine').exists()


def test_ctrl_c_twice_still_deletes_the_machine(tpu):
  plays(tpu, ['sleep'], ['sleep'])
  process = tpu.start(STAND_IN_FAIL='slow_delete')
  until((tpu.state / 'vm1/script.asleep').exists)
  os.killpg(process.pid, signal.SIGINT)
  until((tpu.state / 'deleting').exists)
  os.killpg(process.pid, signal.SIGINT)
  process.wait(timeout=60)
  assert not (tpu.state / 'machine').exists()
  process.communicate()
  assert process.returncode == 130


def test_failed_delete_is_repeated(tpu):
  plays(tpu, [3], [3])
  done = tpu.run(STAND_IN_FAIL='delete_once')
  assert done.returncode == 3
  assert verbs(tpu)[-3:] == ['delete', 'describe', 'delete']
  assert 'MAY STILL BE RUNNING' not in done.stderr


def test_delete_that_never_works_is_reported(tpu):
  saved(tpu)
  plays(tpu, [0], [0])
  done = tpu.run(STAND_IN_FAIL='delete')
  assert done.returncode == 1
  assert verbs(tpu).count('delete') == 3
  assert "'my-tpu' MAY STILL BE RUNNING" in done.stderr
  assert done.stderr.splitlines()[-1].startswith(
    'gcloud compute tpus tpu-vm del'
  )


@pytest.mark.long
def test_two_workers_train_to_the_end(tpu, tmp_path):
  """One run of two processes, from the commit that was sent to the workers. It
  resumes on the same machine after one process got SIGTERM."""
  process = tpu.start('--', *SHORT)
  rows = tpu.state / 'bucket/runs/my-tpu/metrics.jsonl'
  until(lambda: rows.exists() and rows.read_text(), seconds=300)
  os.kill(int((tpu.state / 'vm1/pid').read_text()), signal.SIGTERM)
  out, err = process.communicate()
  assert process.returncode == 0, err
  assert verbs(tpu)[3:] == ['ssh', 'ssh', 'ssh', 'scp', 'delete']
  assert 'restarts left: ' in err
  assert out.count('going on with') == 1  # worker 0 alone prints
  assert out.count('reference macs') == 1
  fetched = tmp_path / 'fetched/my-tpu'
  assert set(result(fetched)) == KEYS
  assert len(metrics(fetched)) == 4
  assert json.loads((fetched / 'config.json').read_text())['git'] is not None
  installed = (tpu.state / 'installed').read_text()
  assert installed.count('jax[tpu]') == 2
  assert installed.count('my-bucket bucket') == 2
  assert not (tpu.state / 'machine').exists()


@pytest.mark.long
def test_one_worker_needs_no_bucket(tpu, tmp_path):
  done = tpu.run('--', *SHORT, BUCKET='', STAND_IN_WORKERS='1')
  assert done.returncode == 0, done.stderr
  assert set(result(tmp_path / 'fetched/my-tpu')) == KEYS
  assert 'gcsfuse' not in (tpu.state / 'installed').read_text()
