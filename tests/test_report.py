"""What a run tells: the bar, the metrics file, TensorBoard, the table."""

import fcntl
import json
import os
import pty
import struct
import subprocess
import sys
import termios

import pytest

from dnal_jax.workdir import metrics_file, result_file

BAR = """
import time
from dnal_jax.training import progress_bar
bar = progress_bar.ProgressBar(8, 64, done=4, also=lambda done, metrics: None)
bar.begin('search 2/2')
for _ in range(4):
  time.sleep(0.3)
  bar.steps(1, {'loss': 128.0, 'correct': 16.0, 'gates': [7, 8, 9]})
bar.tell('an epoch is over')
bar.close()
"""


def on_a_terminal(code):
  """What `code` shows on a terminal of 150 columns."""
  ours, theirs = pty.openpty()
  size = struct.pack('HHHH', 40, 150, 0, 0)
  fcntl.ioctl(theirs, termios.TIOCSWINSZ, size)
  with subprocess.Popen(
    [sys.executable, '-c', code], stdout=theirs, stderr=theirs
  ):
    os.close(theirs)
    shown = b''
    try:
      while chunk := os.read(ours, 4096):
        shown += chunk
    except OSError:  # the other end is closed
      pass
  os.close(ours)
  return shown.decode()


def test_bar_on_a_terminal_and_silence_elsewhere():
  shown = on_a_terminal(BAR)
  assert 'search 2/2:' in shown
  assert '/512' in shown  # images of the stage, an epoch of which was done
  assert 'images/s' in shown
  assert 'loss=2.000, accuracy=25.0%, gates <0.1/undecided/>0.9=7/8/9' in shown
  assert 'an epoch is over' in shown
  piped = subprocess.run(
    [sys.executable, '-c', BAR], capture_output=True, text=True, check=True
  )
  assert piped.stdout == 'an epoch is over\n'
  assert piped.stderr == ''


def row(epochs_done):
  return {'epochs_done': epochs_done, 'stage': 's', 'step': 5, 'loss': 0.5}


def test_metrics_drop_what_will_be_run_again(tmp_path):
  before = metrics_file.Metrics(tmp_path, 0, events=False)
  for epoch in (1, 2, 3):
    before.write(row(epoch), {})
  file = tmp_path / 'metrics.jsonl'
  file.write_text(file.read_text() + '{"epochs_done": 4, "los')  # a kill
  resumed = metrics_file.Metrics(tmp_path, 2, events=False)
  resumed.write(row(3), {})
  rows = [json.loads(line) for line in file.read_text().splitlines()]
  assert [r['epochs_done'] for r in rows] == [1, 2, 3]


EVENTS = """
import pathlib, sys
import numpy as np
from dnal_jax.workdir import metrics_file
folder = pathlib.Path(sys.argv[1])
metrics = metrics_file.Metrics(folder, 0, events=True)
row = {'epochs_done': 1, 'stage': 'search', 'step': 5, 'loss': 0.5}
metrics.write(row, {'block1/out': np.array([0.0, 1.0, 1.0])})
from tensorboard.backend.event_processing import event_accumulator
from tensorboard.util import tensor_util
events = event_accumulator.EventAccumulator(str(folder / 'tensorboard'))
events.Reload()
tags = events.Tags()['tensors']
print(sorted(tags))
(loss,) = events.Tensors('search/loss')
print(loss.step, tensor_util.make_ndarray(loss.tensor_proto))
"""


@pytest.mark.slow
def test_tensorboard_gets_scalars_and_gate_histograms(tmp_path):
  told = subprocess.run(
    [sys.executable, '-c', EVENTS, str(tmp_path)],
    capture_output=True,
    text=True,
    check=True,
  )
  assert told.stdout.splitlines() == [
    "['gates/block1/out', 'search/loss']",
    '5 0.5',
  ]


def test_closing_table_shows_what_was_measured_alone():
  counts = {
    'params': 10,
    'macs': 20,
    'reference_params': 30,
    'reference_macs': 40,
  }
  result = {
    'network': 'n',
    'dataset': 'd',
    'seed': 0,
    'baseline': counts,
    'learned': None,
    'gates': {'total': 5, 'kept': 5},
    'top1': {'warmup': None, 'final': 0.5},
    'compact_max_abs_diff': None,
    'test_top1': 0.25,
    'test_top5': None,
  }
  check = 'equivalence check, pruned vs. masked model'
  lines = result_file.closing_table(result).splitlines()
  assert not any('warmup' in line for line in lines)
  assert 'test top-5                       -' in lines
  assert 'test top-1                  25.00%' in lines
  assert not any(check in line or 'ratio' in line for line in lines[3:])
  half = {key: value // 2 for key, value in counts.items()}
  learned = {**result, 'learned': half, 'compact_max_abs_diff': 4.76e-6}
  table = result_file.closing_table(learned)
  assert table.count('2.0x') == 4
  assert table.splitlines()[-1] == f'{check}: max abs logit difference 4.8e-06'
