"""Runs hit at random moments: `benchmarks/crash_test.py`, its short form."""

import subprocess
import sys

from commands import ROOT
import pytest


@pytest.mark.slow
def test_whatever_hits_a_run_it_ends_the_same():
  """Up to six hits: kills, then one with a checkpoint damaged and one under a
  clock that jumps."""
  told = subprocess.run(
    (
      *(sys.executable, 'benchmarks/crash_test.py', '3'),
      '--kinds=kill,flip,clock',
    ),
    cwd=ROOT,
    capture_output=True,
    text=True,
    check=False,
    timeout=900,
  )
  assert told.returncode == 0, (told.stdout, told.stderr)
  table = [
    line.split()
    for line in told.stdout.splitlines()
    if line.startswith(('kill ', 'flip ', 'clock '))
  ]
  heads = ('tries', 'hits', 'refused', 'identical', 'failed', 'differing')
  rows = {
    kind: dict(zip(heads, map(int, counts), strict=True))
    for kind, *counts in table
    if counts and counts[0].isdecimal()
  }
  left_out = 'clock is left out' in told.stdout
  assert len(rows) == (2 if left_out else 3)
  # Kills and clocks damage nothing.
  assert not any(rows[k]['refused'] for k in rows if k != 'flip')
  assert sum(row['identical'] for row in rows.values()) == 3
  assert sum(row['hits'] for row in rows.values()) >= 1
