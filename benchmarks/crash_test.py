"""Kills and damages runs at random moments and compares their results.

  python benchmarks/crash_test.py 50 [--seed=0] [--kinds=kill,flip,...]

Each try is a run of the demo's network through all stages, with a checkpoint
every 5 steps. It is hit twice: at any moment, while a checkpoint is being
written, or around the pruning; then it runs to its end. Weights, architecture,
metrics and result must equal those of an undisturbed run, byte for byte except
for times. The kind of a try decides what a hit is:

  kill      SIGKILL to the whole process group
  flip      kill, then one bit of a file of a checkpoint is flipped
  cut       kill, then a file of a checkpoint is truncated
  times     kill, then all files get random modification times within a year
  clock     kill, and the clock jumps by days every 5 s in all runs of the try
            (needs a C compiler); a run that exits with code 75, because a save
            seems to have taken days, is started again
  full      the disk is full until the run has exited by itself with a message
            that names the folder (needs root, to mount a small disk)
  readonly  the folder is read-only, likewise

After flip and cut a run may also refuse to resume, with a message that names
the folder; then a run in a new folder, as the message advises, must end in the
same result. The exit code is 1 if any try ends differently.
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

from damage import AFTER_KILL, DAMAGING, DURING_RUN, readonly, small_disk
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
TIMEOUT = 600  # seconds in which a run that was hit must exit by itself


class Run:
  """A process that trains in a folder."""

  def __init__(self, workdir, clock=None):
    self.workdir = workdir
    self._process = subprocess.Popen(
      [sys.executable, '-m', 'dnal_jax.main', *FLAGS, f'--workdir={workdir}'],
      cwd=ROOT,
      stdout=subprocess.DEVNULL,
      stderr=subprocess.PIPE,
      text=True,
      start_new_session=True,
      # libtpu, which JAX would load, aborts when the clock jumps by minutes.
      env={
        'JAX_PLATFORMS': 'cpu',
        **os.environ,
        **({'LD_PRELOAD': str(clock)} if clock else {}),
      },
    )

  def end(self, seconds=TIMEOUT):
    """(exit code, standard error) after it has exited by itself."""
    try:
      _, errors = self._process.communicate(timeout=seconds)
    except subprocess.TimeoutExpired:
      self.kill()
      return None, f'had not exited after {seconds} s'
    return self._process.returncode, errors

  def kill(self):
    with contextlib.suppress(ProcessLookupError):  # it has just exited
      os.killpg(self._process.pid, signal.SIGKILL)
    self._process.communicate()

  def wait_for_a_moment(self, seconds, rng):
    """Waits for a random moment of a run that takes `seconds` undisturbed.

    Returns whether the process still runs."""
    awaited = rng.choice((None, self._is_saving, self._has_pruned))
    pause = rng.uniform(0, seconds)
    if awaited == self._has_pruned:
      pause = rng.uniform(0, 0.3 * seconds)
    elif awaited == self._is_saving:
      time.sleep(rng.uniform(0, seconds))  # so that it is not always the first
      pause = 0
    while awaited and self._process.poll() is None and not awaited():
      time.sleep(0.001)
    with contextlib.suppress(subprocess.TimeoutExpired):
      self._process.wait(timeout=pause)
    return self._process.poll() is None

  def _is_saving(self):
    return any((self.workdir / 'checkpoints').glob('*tmp*'))

  def _has_pruned(self):
    return (self.workdir / 'architecture.json').exists()


def digest(workdir):
  """Hash of all results of a run, except times."""
  result = json.loads((workdir / 'result.json').read_text())
  for stage in result['stages']:
    del stage['seconds']
  lines = (workdir / 'metrics.jsonl').read_text().splitlines()
  rows = [json.loads(line) for line in lines]
  for row in rows:
    del row['images_per_second']
  content = json.dumps([result, rows]).encode()
  weights = 'model/variables.safetensors'
  for name in ('architecture.json', weights, f'warmup/{weights}'):
    content += (workdir / name).read_bytes()
  return hashlib.sha256(content).hexdigest()


def attempt(workdir, kind, seconds, clock, rng):
  """(digest of the results, or 'failed'; counts; standard error)."""
  counts = collections.Counter()
  for _ in range(HITS):
    run = Run(workdir, clock)
    if not run.wait_for_a_moment(seconds, rng):
      code, errors = run.end()
      if code not in (0, AGAIN) and kind not in DAMAGING:
        return 'failed', counts, f'{code}: {errors}'
      continue
    counts['hits'] += 1
    if kind in DURING_RUN:
      with DURING_RUN[kind](workdir):
        code, errors = run.end()
      # 0: the rest of the run needed no disk.
      if code != 0 and (code != 2 or str(workdir) not in errors):
        return 'failed', counts, f'{code}: {errors}'
      continue
    run.kill()
    if kind in AFTER_KILL:
      AFTER_KILL[kind](workdir, rng)
  code, errors = Run(workdir, clock).end()
  for _ in range(20):  # starts, one of which must finish
    if code != AGAIN:
      break
    code, errors = Run(workdir, clock).end()
  refused = code == 2 and kind in DAMAGING
  if refused and f"'{workdir / 'checkpoints'}" in errors:
    counts['refused'] += 1
    workdir = workdir.with_name('another')
    code, more = Run(workdir).end()
    errors += more
  return ('failed' if code else digest(workdir)), counts, errors


def left_out(kind, folder):
  """Why this machine cannot do that kind of try; None if it can."""
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
        return 'the file system cannot make a folder read-only'
  except (OSError, subprocess.CalledProcessError) as error:
    return str(error)
  return None


def supported(kinds, folder):
  """Those of the kinds that this machine can do; prints why not the others."""
  found = []
  for kind in kinds:
    why = left_out(kind, folder)
    if why:
      print(f'{kind} is left out: {why}')
    else:
      found.append(kind)
  return found


def undisturbed_run(folder):
  """(digest of an undisturbed run, its seconds once programs are cached)."""
  code, errors = Run(folder / 'undisturbed').end()
  if code:
    sys.exit(errors)
  started = time.monotonic()
  Run(folder / 'timed').end()
  return digest(folder / 'undisturbed'), time.monotonic() - started


def judge(number, kind, folder, expected, seconds, rng):
  """Makes a try, prints its end, and returns its counts."""
  place = folder / str(number)
  clock = folder / 'clock.so' if kind == 'clock' else None
  disk = small_disk(place) if kind == 'full' else contextlib.nullcontext()
  with disk:
    end, counts, errors = attempt(place / 'run', kind, seconds, clock, rng)
    if end != 'failed':
      end = 'identical' if end == expected else 'differing'
    print(f'{number + 1}: {kind}, {dict(counts)}: {end}', flush=True)
    bad = end != 'identical'
    if bad and kind == 'full':  # before the disk is unmounted
      shutil.copytree(place, folder / f'{number}-disk')
  if bad or counts['refused']:
    print(f'  {errors.strip()}', flush=True)
  if bad:
    print(f'  kept in {place}*', flush=True)
  else:
    shutil.rmtree(place)
  return {'tries': 1, end: 1, **counts}


def main():
  parser = argparse.ArgumentParser()
  parser.add_argument('tries', type=int)
  parser.add_argument('--seed', type=int, default=0)
  parser.add_argument('--kinds', default=','.join(KINDS))
  args = parser.parse_args()
  rng = random.Random(args.seed)
  kinds = args.kinds.split(',')
  for kind in kinds:
    if kind not in KINDS:
      parser.error(f'--kinds has {kind!r}; kinds are {", ".join(KINDS)}')
  print(
    f'jax {jax.__version__}, {platform.processor()}, {os.cpu_count()} cores'
  )
  folder = pathlib.Path(tempfile.mkdtemp(prefix='crash_test_'))
  kinds = supported(kinds, folder)
  expected, seconds = undisturbed_run(folder)
  counts = collections.defaultdict(collections.Counter)
  for number in range(args.tries):
    kind = kinds[number % len(kinds)]
    counts[kind].update(judge(number, kind, folder, expected, seconds, rng))
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
