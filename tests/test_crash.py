"""Runs hit at random moments: the short forms of benchmarks/crash_test.py."""

import subprocess
import sys

from commands import ROOT
import pytest

HEADS = ('tries', 'hits', 'refused', 'identical', 'failed', 'differing')


def crash_test(tries, *kinds):
  """{kind: {head: count}} of the kinds that this machine can do."""
  done = subprocess.run(
    (
      *(sys.executable, 'benchmarks/crash_test.py', str(tries)),
      f'--kinds={",".join(kinds)}',
    ),
    cwd=ROOT,
    capture_output=True,
    text=True,
    check=False,
    timeout=1800,
  )
  assert done.returncode == 0, (done.stdout, done.stderr)
  lines = [line.split() for line in done.stdout.splitlines()]
  rows = {
    kind: dict(zip(HEADS, map(int, counts), strict=True))
    for kind, *counts in filter(None, lines)
    if kind in kinds and counts and counts[0].isdecimal()
  }
  left_out = [kind for kind in kinds if f'{kind} is left out' in done.stdout]
  assert {*rows, *left_out} == {*kinds}
  assert not {*rows} & {*left_out}
  assert sum(row['identical'] for row in rows.values()) == tries
  return rows


@pytest.mark.long
def test_a_killed_run_with_a_damaged_checkpoint_ends_the_same():
  """One run is killed two times, and a bit of a checkpoint is flipped."""
  assert crash_test(1, 'flip')['flip']['hits'] >= 1


@pytest.mark.long
def test_whatever_hits_a_run_it_ends_the_same():
  """Two tries of each kind."""
  kinds = ('kill', 'flip', 'cut', 'times', 'clock', 'full', 'readonly')
  rows = crash_test(14, *kinds)
  # Only damage to a checkpoint may make a run refuse to go on.
  assert not any(rows[k]['refused'] for k in rows if k not in ('flip', 'cut'))
  assert sum(row['hits'] for row in rows.values()) >= 7
