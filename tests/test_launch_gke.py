"""launch/gke.sh and its manifest, with a stand-in for kubectl."""

import math
import re

from commands import ROOT, command
from launching import Launch
import pytest
import yaml


@pytest.fixture
def gke(tmp_path):
  given = {
    'IMAGE': 'reg/dnal:1',
    'BUCKET': 'my-bucket',
    'CONFIG': 'configs/quickstart.py',
  }
  return Launch('gke.sh', ROOT, tmp_path / 'state', **given)


@pytest.mark.parametrize(
  ('variables', 'part'),
  [
    ({'IMAGE': ''}, 'IMAGE is not set'),
    ({'BUCKET': ''}, 'BUCKET is not set'),
    ({'BUCKET': 'gs://b'}, "BUCKET is 'gs://b'"),
    ({'CONFIG': 'configs/none.py'}, "no file 'configs/none.py'"),
    ({'WORKDIR': 'a: b'}, "WORKDIR is 'a: b'"),
  ],
)
def test_gke_mistakes(variables, part, gke):
  assert part in gke.refuses(**variables)


def test_gke_manifest_fits_the_slice_and_the_command_line(gke):
  flags = ('--config.seed=1', "--config.order=('warmup','search')")
  done = gke.run('--print', '--', *flags)
  assert done.returncode == 0, done.stderr
  spec = yaml.safe_load(done.stdout)['spec']
  (slice_,) = spec['replicatedJobs']
  job = slice_['template']['spec']
  pod = job['template']['spec']
  (container,) = pod['containers']
  topology = pod['nodeSelector']['cloud.google.com/gke-tpu-topology']
  chips = math.prod(map(int, topology.split('x')))
  per_host = container['resources']['limits']['google.com/tpu']
  assert slice_['replicas'] == 1
  assert job['parallelism'] == job['completions'] == chips // per_host == 4
  # Exit code 2 ends the run; any other exit of a host restarts all hosts.
  assert job['backoffLimit'] == 0
  assert pod['restartPolicy'] == 'Never'
  (rule,) = job['podFailurePolicy']['rules']
  assert rule['action'] == 'FailJob'
  assert rule['onExitCodes'] == {
    'containerName': container['name'],
    'operator': 'In',
    'values': [2],
  }
  assert spec['failurePolicy']['maxRestarts'] > 0
  (rule,) = spec['failurePolicy']['rules']
  assert rule['action'] == 'FailJobSet'
  assert rule['onJobFailureReasons'] == ['PodFailurePolicy']
  # The run's folder is on the volume that mounts the bucket.
  (mount,), (volume,) = container['volumeMounts'], pod['volumes']
  assert mount['name'] == volume['name']
  assert volume['csi']['volumeAttributes']['bucketName'] == 'my-bucket'
  options = volume['csi']['volumeAttributes']['mountOptions'].split(',')
  assert 'metadata-cache:ttl-secs:0' in options
  workdir = f'{mount["mountPath"]}/runs/dnal-jax'
  # It is the command that all of the other tests start.
  python, unbuffered, *module = container['command']
  assert (python, unbuffered) == ('python', '-u')
  expected = command(workdir, *flags)
  assert (*module, *container['args']) == expected[1:]
  assert '${' not in done.stdout.partition('apiVersion')[2]


def test_gke_applies_what_it_prints(gke):
  printed = gke.run('--print').stdout
  done = gke.run()
  assert done.returncode == 0, done.stderr
  assert gke.calls() == ['kubectl apply --filename=-']
  assert (gke.state / 'applied.yaml').read_text() == printed
  assert 'jobset-name=dnal-jax' in done.stdout


def test_dockerfile_copies_what_exists():
  text = (ROOT / 'launch/Dockerfile').read_text()
  copied = re.findall(r'^COPY (\S+) ', text, re.M)
  assert set(copied) == {'requirements.txt', 'configs', 'dnal_jax'}
  assert all((ROOT / name).exists() for name in copied)
