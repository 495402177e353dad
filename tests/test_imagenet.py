"""Whole runs on ImageNet: the real builder, over small tars of photographs."""

import io
import os
import re
import signal
import subprocess
import sys
import tarfile
import time

from commands import (
  KEYS,
  ROOT,
  assert_same,
  command,
  fail_here,
  metrics,
  result,
  run_here,
)
import numpy as np
from photographs import jpeg
import pytest

import dnal_jax
from dnal_jax.cost import exact
import dnal_jax.prepare

pytestmark = pytest.mark.xdist_group('imagenet')
TINY = (
  *('--config.network.width=0.1', '--config.data.image=32'),
  *('--config.data.short_side=36', '--config.data.validation=8'),
  *('--config.batch_size=8', '--config.eval_batch_size=8'),
  *('--config.stages.warmup.epochs=1', '--config.stages.search.epochs=2'),
  *('--config.stages.finetune.epochs=1', '--config.checkpoint_steps=2'),
  *('--config.tensorboard=False', '--config.penalty=0.01'),
)
RESNET = ('--config.stages.search.epochs=1', '--config.compute_dtype=bfloat16')
PROXYLESS = ('--config.network.name=proxyless_digits', '--config.penalty=0.05')


def add(tar, name, data):
  info = tarfile.TarInfo(name)
  info.size = len(data)
  tar.addfile(info, io.BytesIO(data))


def write_tars(directory, synsets):
  """40 images to train in four classes, 10 to validate; of many sizes, one
  gray, one CMYK."""
  rng = np.random.default_rng(0)

  def image(i):
    mode = {5: 'L', 6: 'CMYK'}.get(i, 'RGB')
    width, height = (int(n) for n in rng.integers(30, 200, 2))
    return jpeg(i, width, height, rng=rng, mode=mode)

  directory.mkdir(parents=True)
  with tarfile.open(directory / 'ILSVRC2012_img_train.tar', 'w') as train:
    for i, synset in enumerate(synsets):
      file = io.BytesIO()
      with tarfile.open(fileobj=file, mode='w') as tar:
        for j in range(10):
          add(tar, f'{synset}_{j}.JPEG', image(10 * i + j))
      add(train, f'{synset}.tar', file.getvalue())
  with tarfile.open(directory / 'ILSVRC2012_img_val.tar', 'w') as validation:
    for i in range(1, 11):
      add(validation, f'ILSVRC2012_val_{i:08d}.JPEG', image(i))


def prepare(*flags):
  return subprocess.run(
    [sys.executable, '-m', 'dnal_jax.prepare', *flags],
    cwd=ROOT,
    capture_output=True,
    text=True,
    check=False,
  )


# The classes of the first validation images, in the builder's own list.
SYNSETS = ('n01751748', 'n09193705', 'n02105855', 'n04263257')


@pytest.fixture(scope='session')
def imagenet(tmp_path_factory):
  """A directory with imagenet2012, prepared from tars as docs/data.md says."""
  root = tmp_path_factory.mktemp('imagenet')
  write_tars(root / 'tars', SYNSETS)
  flags = ('--dataset=imagenet2012', f'--data_dir={root}')
  done = prepare(*flags, f'--manual_dir={root}/tars')
  assert done.returncode == 0, done.stderr
  assert 'is prepared in' in done.stdout
  return root


def environment(imagenet):
  """The table of where each record lies goes to a cache of the tests'."""
  return {**os.environ, 'XDG_CACHE_HOME': str(imagenet / 'cache')}


def run(imagenet, name, workdir, *flags):
  """A run of configs/NAME.py on the small ImageNet; what it printed."""
  done = subprocess.run(
    command(
      workdir,
      f'--config.data.dir={imagenet}',
      *TINY,
      *flags,
      config=f'configs/{name}.py',
    ),
    cwd=ROOT,
    env=environment(imagenet),
    capture_output=True,
    text=True,
    check=False,
  )
  assert done.returncode == 0, done.stderr
  return done.stdout


def kill_at_checkpoint(imagenet, name, workdir, number, *flags):
  """Runs until the checkpoint is there, then SIGKILLs the process group."""
  flags = (f'--config.data.dir={imagenet}', *TINY, *flags)
  process = subprocess.Popen(
    command(workdir, *flags, config=f'configs/{name}.py'),
    cwd=ROOT,
    env=environment(imagenet),
    stdout=subprocess.DEVNULL,
    start_new_session=True,
  )
  checkpoint = workdir / 'checkpoints' / str(number)
  while process.poll() is None and not checkpoint.exists():
    time.sleep(0.02)
  assert process.poll() is None, 'ended before it could be killed'
  os.killpg(process.pid, signal.SIGKILL)
  process.wait()


def check_mobilenet_v2(imagenet, tmp_path, kills, network):
  """A run that is killed at these checkpoints leaves the files of one that is
  not. A checkpoint's number is that of the steps done plus the stages entered;
  there are four steps an epoch, and a checkpoint every two.
  """
  whole, killed = tmp_path / 'whole', tmp_path / 'killed'
  flag = f'--config.network.name={network}'
  printed = run(imagenet, 'mbv2_imagenet', whole, flag)
  assert 'pruned to' in printed
  got = result(whole)
  assert set(got) == KEYS
  assert (got['network'], got['dataset']) == (network, 'imagenet2012')
  assert [s['steps'] for s in got['stages']] == [4, 8, 4]
  assert got['learned']['macs'] < got['baseline']['macs']
  assert got['top1']['pruned'] == got['top1']['compact']
  assert got['test_top5'] is not None
  for number in kills:
    kill_at_checkpoint(imagenet, 'mbv2_imagenet', killed, number, flag)
    assert not (killed / 'result.json').exists()
  assert 'going on with' in run(imagenet, 'mbv2_imagenet', killed, flag)
  assert_same(killed, whole)
  net, _ = dnal_jax.load(killed)
  assert exact.count(net, (32, 32, 3)).macs == got['learned']['macs']


@pytest.mark.long
@pytest.mark.parametrize('network', ['mobilenet_v2_digits', 'mobilenet_v2'])
def test_mobilenet_v2_killed_in_two_stages(network, imagenet, tmp_path):
  """In the middle of the warm-up's epoch, and of the search's second one."""
  check_mobilenet_v2(imagenet, tmp_path, [2, 11], network)


def check_resnet(imagenet, workdir, *flags):
  """In bfloat16, through all stages."""
  printed = run(imagenet, 'resnet50_imagenet', workdir, *RESNET, *flags)
  assert [row['stage'] for row in metrics(workdir)] == [
    *('warmup', 'search', 'finetune')
  ]
  got = result(workdir)
  assert got['learned']['params'] < got['baseline']['params']
  assert got['compact_max_abs_diff'] is not None
  return printed


@pytest.mark.long
def test_resnet_in_bfloat16(imagenet, tmp_path):
  """The config's data and stages; the network is one of three blocks."""
  flags = ('--config.network.name=resnet8_digits', '--config.network.width=0.5')
  check_resnet(imagenet, tmp_path / 'run', *flags)
  tables = (imagenet / 'cache' / 'dnal_jax').glob('imagenet2012-*-records.npz')
  assert len(list(tables)) == 2  # where the records of each split lie
  got = result(tmp_path / 'run')
  assert set(got) == KEYS
  assert got['dataset'] == 'imagenet2012'
  assert got['class_names'][388] == 'n02510455'  # of 1000, in tfds' order
  assert got['top1']['pruned'] == got['top1']['compact']
  assert got['test_top5'] is not None


@pytest.mark.long
def test_resnet50_killed_and_resumed(imagenet, tmp_path):
  workdir = tmp_path / 'run'
  kill_at_checkpoint(imagenet, 'resnet50_imagenet', workdir, 2, *RESNET)
  printed = check_resnet(imagenet, workdir)
  assert "going on with 'warmup'" in printed


@pytest.mark.slow
def test_missing_tars_are_named(tmp_path):
  flags = ('--dataset=imagenet2012', f'--data_dir={tmp_path}')
  done = run_here(dnal_jax.prepare, *flags)
  assert done.code == 2
  where = tmp_path / 'downloads' / 'manual'
  both = 'ILSVRC2012_img_train.tar and ILSVRC2012_img_val.tar'
  assert f"error: '{where}' lacks {both}" in done.err
  where.mkdir(parents=True)
  (where / 'ILSVRC2012_img_train.tar').write_bytes(b'')
  done = run_here(dnal_jax.prepare, *flags)
  assert f"'{where}' lacks ILSVRC2012_img_val.tar" in done.err
  assert not (tmp_path / 'imagenet2012').exists()
  message = fail_here(
    tmp_path / 'run',
    f'--config.data.dir={tmp_path}',
    config='configs/mbv2_imagenet.py',
  )
  assert f"'imagenet2012' is not prepared in '{tmp_path}'" in message
  assert 'python -m dnal_jax.prepare --dataset=imagenet2012' in message
  assert not (tmp_path / 'run').exists()


def check_proxyless(imagenet, workdir):
  """A supernet of six blocks; that of 21 compiles for minutes on a CPU
  (`tests/test_surgery.py` cuts it)."""
  printed = run(imagenet, 'proxyless_imagenet', workdir, *PROXYLESS)
  got = result(workdir)
  assert got['learned']['macs'] < got['baseline']['macs']
  assert got['top1']['pruned'] == got['top1']['compact']
  summary = subprocess.run(
    [
      *(sys.executable, '-m', 'dnal_jax.summary'),
      f'--architecture={workdir}/architecture.json',
    ],
    cwd=ROOT,
    capture_output=True,
    text=True,
    check=True,
  ).stdout
  blocks = [line for line in summary.splitlines() if line.startswith('block')]
  named = [line for line in blocks if re.match(r'block\d_\d: ', line)]
  assert [line[:8] for line in named] == ['block1_1', 'block1_2', 'block2_1']
  assert re.search(r': (.*, )?[357]x[357] e[36] \d+/(24|48|96|48)\b', named[0])
  return printed


@pytest.mark.long
def test_proxyless(imagenet, tmp_path):
  check_proxyless(imagenet, tmp_path / 'run')


@pytest.mark.long
def test_proxyless_killed_and_resumed(imagenet, tmp_path):
  workdir = tmp_path / 'run'
  kill_at_checkpoint(imagenet, 'proxyless_imagenet', workdir, 2, *PROXYLESS)
  assert 'going on' in check_proxyless(imagenet, workdir)
