"""Runs that are hurt at random moments, beside one that is left alone.

  python benchmarks/crash_test.py 50 [--seed=0] [--kinds=kill,flip,...]

Each try is a run of the demo's network through all stages and the cut, with a
checkpoint every 5 steps. Two times it is hit: at any moment, while a checkpoint
is being written, or around the cut; then it runs to its end. Weights,
architecture, metrics and result must be those of the run that was left alone,
byte for byte, times apart. A hit, by kind of try, is

  kill      SIGKILL to the whole process group
  flip      the same, and a bit of a file of a checkpoint is flipped
  cut       the same, and a file of a checkpoint is cut short
  times     the same, and all files are of a random day within a year from now
  clock     the same, and the clock jumps by days every 5 s, in all runs of
            the try (needs a C compiler); a run that ends itself with code 75,
            because a save seems to have taken days, is started again
  full      the disk is filled up until the run has ended by itself, with a
            message that names the folder (root only: a small disk is mounted)
  readonly  nothing in the folder may be written any more, likewise

A run may also refuse to go on, with a message that names the file; what the
message advises is done then, and must end the same. Exit code 1 if a try ends
otherwise.
"""

import argparse
import collections
import contextlib
import hashlib
import json
import os
import pathlib
import platform
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time

import jax

from dnal_jax.errors import AGAIN

ROOT = pathlib.Path(__file__).parent.parent
FLAGS = (
  '--config=configs/quickstart.py',
  '--config.checkpoint_steps=5',
  '--config.stages.warmup.epochs=3',
  '--config.stages.search.epochs=3',
  '--config.stages.finetune.epochs=3',
)
KINDS = ('kill', 'flip', 'cut', 'times', 'clock', 'full', 'readonly')
HITS = 2  # of each try
HANGS = 600  # seconds after which a run that was hit has not ended by itself
DISK = '64m'


class Run:
  """A process that works in a folder."""

  def __init__(self, workdir, clock=None):
    self.workdir = workdir
    self._process = subprocess.Popen(
      [sys.executable, '-m', 'dnal_jax.main', *FLAGS, f'--workdir={workdir}'],
      cwd=ROOT,
      stdout=subprocess.DEVNULL,
      stderr=subprocess.PIPE,
      text=True,
      start_new_session=True,
      # libtpu, where it is installed without a TPU, would end itself as soon
      # as the clock jumps by two minutes.
      env={
        'JAX_PLATFORMS': 'cpu',
        **os.environ,
        **({'LD_PRELOAD': str(clock)} if clock else {}),
      },
    )

  def end(self, seconds=HANGS):
    """(exit code, what was told as an error) once it has ended by itself."""
    try:
      _, told = self._process.communicate(timeout=seconds)
    except subprocess.TimeoutExpired:
      self.kill()
      return None, f'had not ended after {seconds} s'
    return self._process.returncode, told

  def kill(self):
    with contextlib.suppress(ProcessLookupError):  # it has just ended
      os.killpg(self._process.pid, signal.SIGKILL)
    self._process.communicate()

  def reaches_a_moment(self, seconds, rng):
    """Waits for a random one of a run of so many seconds; False if it ended."""
    awaited = rng.choice((None, self._saves, self._cuts))
    pause = rng.uniform(0, seconds)
    if awaited == self._cuts:
      pause = rng.uniform(0, 0.3 * seconds)
    elif awaited == self._saves:
      time.sleep(rng.uniform(0, seconds))  # not always the first
      pause = 0
    while awaited and self._process.poll() is None and not awaited():
      time.sleep(0.001)
    with contextlib.suppress(subprocess.TimeoutExpired):
      self._process.wait(timeout=pause)
    return self._process.poll() is None

  def _saves(self):
    return any((self.workdir / 'checkpoints').glob('*tmp*'))

  def _cuts(self):
    return (self.workdir / 'architecture.json').exists()


def digest(workdir):
  """Of all that a run leaves, times apart."""
  result = json.loads((workdir / 'result.json').read_text())
  for stage in result['stages']:
    del stage['seconds']
  lines = (workdir / 'metrics.jsonl').read_text().splitlines()
  rows = [json.loads(line) for line in lines]
  for row in rows:
    del row['images_per_second']
  content = json.dumps([result, rows]).encode()
  for name in ('architecture.json', 'model/variables.safetensors'):
    content += (workdir / name).read_bytes()
  return hashlib.sha256(content).hexdigest()


# What is done to a folder, after a kill or while a run goes on.


def flip(workdir, rng):
  for file in _of_a_checkpoint(workdir, rng):
    content = bytearray(file.read_bytes())
    content[rng.randrange(len(content))] ^= 1 << rng.randrange(8)
    file.write_bytes(content)


def cut(workdir, rng):
  for file in _of_a_checkpoint(workdir, rng):
    content = file.read_bytes()
    file.write_bytes(content[: rng.randrange(len(content))])


def _of_a_checkpoint(workdir, rng):
  """A file that has content, if there is one yet."""
  files = (workdir / 'checkpoints').rglob('*')
  some = sorted(f for f in files if f.is_file() and f.stat().st_size)
  return rng.sample(some, min(len(some), 1))


def times(workdir, rng):
  for file in workdir.rglob('*'):
    when = time.time() + rng.uniform(-1, 1) * 365 * 86400
    os.utime(file, (when, when))


DAMAGING = ('flip', 'cut')  # after which a run may refuse to go on
LATER = {'flip': flip, 'cut': cut, 'times': times}


@contextlib.contextmanager
def full(workdir):
  filler = workdir.parent / 'filler'
  with contextlib.suppress(OSError), filler.open('wb', 0) as file:
    while True:
      file.write(bytes(4096))
  yield
  filler.unlink()


@contextlib.contextmanager
def readonly(workdir):
  # Permissions do not stop root, who has a flag for that.
  root = os.geteuid() == 0
  forbid, allow = ('+i', '-i') if root else ('a-w', 'u+w')
  command = 'chattr' if root else 'chmod'
  # What is deleted meanwhile is of no consequence.
  subprocess.run([command, '-fR', forbid, workdir], check=False)
  try:
    yield
  finally:
    subprocess.run([command, '-fR', allow, workdir], check=False)


MEANWHILE = {'full': full, 'readonly': readonly}


@contextlib.contextmanager
def small_disk(folder, size=DISK):
  folder.mkdir()
  mount = ('mount', '-t', 'tmpfs', '-o', f'size={size}', 'tmpfs', folder)
  subprocess.run(mount, check=True, capture_output=True)
  try:
    yield
  finally:
    subprocess.run(('umount', folder), check=True)


def attempt(workdir, kind, seconds, clock, rng):
  """(what came of it: a digest, or 'failed'; counts; what was told)."""
  counts = collections.Counter()
  for _ in range(HITS):
    run = Run(workdir, clock)
    if not run.reaches_a_moment(seconds, rng):
      code, told = run.end()
      if code not in (0, AGAIN) and kind not in DAMAGING:
        return 'failed', counts, f'{code}: {told}'
      continue
    counts['hits'] += 1
    if kind in MEANWHILE:
      with MEANWHILE[kind](workdir):
        code, told = run.end()
      # 0: what was left to do needed nothing of the disk.
      if code != 0 and (code != 2 or str(workdir) not in told):
        return 'failed', counts, f'{code}: {told}'
      continue
    run.kill()
    if kind in LATER:
      LATER[kind](workdir, rng)
  code, told = Run(workdir, clock).end()
  for _ in range(20):  # starts, of which one must come to the end
    if code != AGAIN:
      break
    code, told = Run(workdir, clock).end()
  refused = code == 2 and kind in DAMAGING
  if refused and f"'{workdir / 'checkpoints'}" in told:
    counts['refused'] += 1
    workdir = workdir.with_name('another')
    code, more = Run(workdir).end()
    told += more
  return ('failed' if code else digest(workdir)), counts, told


def left_out(kind, folder):
  """Why this machine cannot do it; None if it can."""
  try:
    if kind == 'clock':
      source = ROOT / 'benchmarks/jumping_clock.c'
      to = folder / 'clock.so'
      flags = ('-shared', '-fPIC', '-O2', '-o', to, source, '-ldl')
      subprocess.run(('cc', *flags), check=True, capture_output=True)
    elif kind == 'full':
      with small_disk(folder / 'mounted'):
        pass
    elif kind == 'readonly':
      (folder / 'written').mkdir()
      with readonly(folder / 'written'), contextlib.suppress(OSError):
        (folder / 'written/file').touch()
      if (folder / 'written/file').exists():
        return 'the file system has no way to forbid it'
  except (OSError, subprocess.CalledProcessError) as error:
    return str(error)
  return None


def main():
  parser = argparse.ArgumentParser()
  parser.add_argument('tries', type=int)
  parser.add_argument('--seed', type=int, default=0)
  parser.add_argument('--kinds', default=','.join(KINDS))
  args = parser.parse_args()
  rng = random.Random(args.seed)
  print(
    f'jax {jax.__version__}, {platform.processor()}, {os.cpu_count()} cores'
  )
  folder = pathlib.Path(tempfile.mkdtemp(prefix='crash_test_'))
  kinds = []
  for kind in args.kinds.split(','):
    if kind not in KINDS:
      parser.error(f'--kinds has {kind!r}; there are {", ".join(KINDS)}')
    why = left_out(kind, folder)
    if why:
      print(f'{kind} is left out: {why}')
    else:
      kinds.append(kind)
  alone = folder / 'alone'
  code, told = Run(alone).end()
  if code:
    sys.exit(told)
  whole = digest(alone)
  started = time.monotonic()
  Run(folder / 'timed').end()  # with what it has to compile compiled
  seconds = time.monotonic() - started
  counts = collections.defaultdict(collections.Counter)
  for number in range(args.tries):
    kind = kinds[number % len(kinds)]
    place = folder / str(number)
    clock = folder / 'clock.so' if kind == 'clock' else None
    disk = small_disk(place) if kind == 'full' else contextlib.nullcontext()
    with disk:
      came, of_try, told = attempt(place / 'run', kind, seconds, clock, rng)
      if came != 'failed':
        came = 'identical' if came == whole else 'differing'
      counts[kind].update({'tries': 1, came: 1, **of_try})
      print(f'{number + 1}: {kind}, {dict(of_try)}: {came}', flush=True)
      bad = came != 'identical'
      if bad and kind == 'full':  # before it is gone
        shutil.copytree(place, folder / f'{number}-disk')
    if bad or of_try['refused']:
      print(f'  {told.strip()}', flush=True)
    if bad:
      print(f'  left in {place}*', flush=True)
    else:
      shutil.rmtree(place)
  heads = ('tries', 'hits', 'refused', 'identical', 'failed', 'differing')
  print(f'\n{"":8}' + ''.join(f'{head:>11}' for head in heads))
  for kind, of_kind in counts.items():
    print(f'{kind:8}' + ''.join(f'{of_kind[head]:11}' for head in heads))
  bad = sum(c['failed'] + c['differing'] for c in counts.values())
  if not bad:
    shutil.rmtree(folder)
  sys.exit(bool(bad))


if __name__ == '__main__':
  main()
