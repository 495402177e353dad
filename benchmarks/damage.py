"""Damage to a run's folder, after a kill or while the run continues."""

import contextlib
import os
import subprocess
import time


def flip(workdir, rng):
  for file in _file_of_a_checkpoint(workdir, rng):
    content = bytearray(file.read_bytes())
    content[rng.randrange(len(content))] ^= 1 << rng.randrange(8)
    file.write_bytes(content)


def cut(workdir, rng):
  for file in _file_of_a_checkpoint(workdir, rng):
    content = file.read_bytes()
    file.write_bytes(content[: rng.randrange(len(content))])


def _file_of_a_checkpoint(workdir, rng):
  """[a random file that is not empty], or [] if there is none yet."""
  files = (workdir / 'checkpoints').rglob('*')
  some = sorted(f for f in files if f.is_file() and f.stat().st_size)
  return rng.sample(some, min(len(some), 1))


def times(workdir, rng):
  for file in workdir.rglob('*'):
    when = time.time() + rng.uniform(-1, 1) * 365 * 86400
    os.utime(file, (when, when))


DAMAGING = ('flip', 'cut')  # after these, a run may refuse to resume
AFTER_KILL = {'flip': flip, 'cut': cut, 'times': times}


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
  # Root may write anyway, except to files with the immutable flag.
  root = os.geteuid() == 0
  forbid, allow = ('+i', '-i') if root else ('a-w', 'u+w')
  command = 'chattr' if root else 'chmod'
  # Files that the run deletes meanwhile make the command fail, harmlessly.
  subprocess.run([command, '-fR', forbid, workdir], check=False)
  try:
    yield
  finally:
    subprocess.run([command, '-fR', allow, workdir], check=False)


DURING_RUN = {'full': full, 'readonly': readonly}


@contextlib.contextmanager
def small_disk(folder, size='64m'):
  folder.mkdir()
  mount = ('mount', '-t', 'tmpfs', '-o', f'size={size}', 'tmpfs', folder)
  subprocess.run(mount, check=True, capture_output=True)
  try:
    yield
  finally:
    subprocess.run(('umount', folder), check=True)
