"""Runs that are hurt at random moments, beside one that is left alone.

  python benchmarks/crash_test.py 50 [SEED]

Each try is a run of the demo's network through all stages and the cut, with a
checkpoint every 5 steps. Two times it is killed (SIGKILL to the whole process
group): at any moment, while a checkpoint is being written, or around the cut;
then it runs to its end. Weights, architecture, metrics and result must be those
of the run that was left alone, byte for byte, times apart. Every other kind of
try also hurts what a kill has left:

  kill      nothing else
  flip      a bit of a file of a checkpoint is flipped
  cut       a file of a checkpoint is cut short
  clock     all files are of a random day within a year from now

A try may also end by refusing to go on, with a message that names the file; it
must never end in another result. Exit code 1 if one does.
"""

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

ROOT = pathlib.Path(__file__).parent.parent
FLAGS = (
  '--config=configs/quickstart.py',
  '--config.checkpoint_steps=5',
  '--config.stages.warmup.epochs=3',
  '--config.stages.search.epochs=3',
  '--config.stages.finetune.epochs=3',
)
KINDS = ('kill', 'flip', 'cut', 'clock')
KILLS = 2  # of each try


def start(workdir):
  return subprocess.Popen(
    [sys.executable, '-m', 'dnal_jax.main', *FLAGS, f'--workdir={workdir}'],
    cwd=ROOT,
    stdout=subprocess.PIPE,
    stderr=subprocess.PIPE,
    text=True,
    start_new_session=True,
  )


def to_the_end(workdir):
  """(exit code, what was told as an error)."""
  process = start(workdir)
  _, told = process.communicate()
  return process.returncode, told


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


def saving(workdir):
  return any((workdir / 'checkpoints').glob('*tmp*'))


def cutting(workdir):
  return (workdir / 'architecture.json').exists()


def kill(workdir, seconds, rng):
  """Starts the run and kills it; False if it ended before."""
  process = start(workdir)
  awaited = rng.choice((None, saving, cutting))
  pause = rng.uniform(0, seconds)
  if awaited is cutting:
    pause = rng.uniform(0, 0.3 * seconds)
  elif awaited is saving:
    pause = 0
    time.sleep(rng.uniform(0, seconds))  # not always the first
  while awaited and process.poll() is None and not awaited(workdir):
    time.sleep(0.001)
  try:
    process.communicate(timeout=pause)
  except subprocess.TimeoutExpired:
    with contextlib.suppress(ProcessLookupError):  # it has just ended
      os.killpg(process.pid, signal.SIGKILL)
    process.communicate()
  return process.returncode == -signal.SIGKILL


def hurt(workdir, kind, rng):
  """Does to the folder what the kind of try says."""
  files = sorted(f for f in workdir.rglob('*') if f.is_file())
  if kind == 'clock':
    for file in files:
      when = time.time() + rng.uniform(-1, 1) * 365 * 86400
      os.utime(file, (when, when))
    return
  saved = [f for f in files if 'checkpoints' in f.parts and f.stat().st_size]
  if kind == 'kill' or not saved:
    return
  file = rng.choice(saved)
  content = bytearray(file.read_bytes())
  if kind == 'flip':
    content[rng.randrange(len(content))] ^= 1 << rng.randrange(8)
  else:
    content = content[: rng.randrange(len(content))]
  file.write_bytes(content)


def attempt(workdir, kind, seconds, rng):
  """(what came of it, how often it was killed, what was told)."""
  killed = 0
  for _ in range(KILLS):
    if kill(workdir, seconds, rng):
      killed += 1
      hurt(workdir, kind, rng)
  code, told = to_the_end(workdir)
  if code == 0:
    return digest(workdir), killed, ''
  named = str(workdir / 'checkpoints') in told
  return ('refused' if code == 2 and named else 'failed'), killed, told


def main():
  tries = int(sys.argv[1])
  rng = random.Random(int(sys.argv[2]) if len(sys.argv) > 2 else 0)
  print(
    f'jax {jax.__version__}, {platform.processor()}, {os.cpu_count()} cores'
  )
  folder = pathlib.Path(tempfile.mkdtemp(prefix='crash_test_'))
  alone = folder / 'alone'
  code, told = to_the_end(alone)
  if code:
    sys.exit(told)
  whole = digest(alone)
  started = time.monotonic()
  to_the_end(folder / 'timed')  # with what it has to compile compiled
  seconds = time.monotonic() - started
  counts = collections.defaultdict(collections.Counter)
  for number in range(tries):
    kind = KINDS[number % len(KINDS)]
    workdir = folder / str(number)
    came, killed, told = attempt(workdir, kind, seconds, rng)
    if came == whole:
      came = 'identical'
    elif came not in ('refused', 'failed'):
      came = 'differing'
    counts[kind].update(tries=1, kills=killed, **{came: 1})
    print(f'{number + 1}: {kind}, {killed} kills: {came}', flush=True)
    if came in ('identical', 'refused'):
      shutil.rmtree(workdir)
    else:
      print(f'  left in {workdir}; {told.strip()}', flush=True)
  heads = ('tries', 'kills', 'identical', 'refused', 'failed', 'differing')
  print(f'\n{"":8}' + ''.join(f'{head:>11}' for head in heads))
  for kind, of_kind in counts.items():
    print(f'{kind:8}' + ''.join(f'{of_kind[head]:11}' for head in heads))
  bad = sum(c['failed'] + c['differing'] for c in counts.values())
  if not bad:
    shutil.rmtree(folder)
  sys.exit(bool(bad))


if __name__ == '__main__':
  main()
