"""What observes a run: progress bar, metrics file, TensorBoard; their order."""

import fcntl
import json
import os
import pty
import struct
import subprocess
import sys
import termios

import pytest

from dnal_jax.training.hooks import Hook, HookList
from dnal_jax.workdir.metrics_file import MetricsFile

BAR = """
import time
from dnal_jax.training.progress_bar import ProgressBar
from dnal_jax.training.stages import Stage
bar = ProgressBar(batch_size=64, steps_per_epoch=4)
bar.begin_stage(1, Stage('search', 2, {}, delta_end=10.0), steps_done=4)
for done in (5, 6, 7, 8):
  time.sleep(0.3)
  bar.on_steps(done, {'loss': 128.0, 'correct': 16.0, 'gates': [7, 8, 9]})
row = {'stage': 'search', 'epoch': 2, 'epochs': 2, 'loss': 1.5,
  'train_top1': 0.25, 'validation_top1': 0.5, 'images_per_second': 100.4,
  'gates': {'low': 7, 'undecided': 8, 'high': 9}}
bar.end_epoch(row, {})
bar.end_epoch(row, {})
bar.end_stage()
"""
FIRST = 'search: 2 epochs of 4 steps; compiling the step'
LINE = (
  'search 2/2: loss 1.5000, train 25.00%, validation 50.00%, 100 images/s{},'
  ' gates <0.1: 7, undecided: 8, >0.9: 9'
)
LINES = FIRST, LINE.format(' (compiling included)'), LINE.format('')


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
  assert all(line in shown for line in LINES)
  piped = subprocess.run(
    [sys.executable, '-c', BAR], capture_output=True, text=True, check=True
  )
  assert piped.stdout.splitlines() == list(LINES)
  assert piped.stderr == ''


class Recorder(Hook):
  def __init__(self, name, calls, limit=None):
    self.name, self.calls, self.limit = name, calls, limit

  def before_chunk(self, steps):
    return min(steps, self.limit or steps)

  def end_stage(self):
    self.calls.append(self.name)


def test_hooks_are_called_in_order_and_the_smallest_chunk_counts():
  calls = []
  hooks = HookList([Recorder('a', calls, 7), Recorder('b', calls, 9), Hook()])
  assert hooks.before_chunk(20) == 7
  assert hooks.before_chunk(3) == 3
  hooks.end_stage()
  assert calls == ['a', 'b']


def test_hook_list_passes_on_every_call():
  """A method that is added to Hook and forgotten in HookList fails here."""
  names = [name for name in vars(Hook) if not name.startswith('_')]
  assert set(names) == {n for n in vars(HookList) if not n.startswith('_')}


def row(epochs_done):
  return {'epochs_done': epochs_done, 'stage': 's', 'step': 5, 'loss': 0.5}


def test_metrics_drop_epochs_that_will_be_done_again(tmp_path):
  before = MetricsFile(tmp_path, 0)
  for epoch in (1, 2, 3):
    before.end_epoch(row(epoch), {})
  file = tmp_path / 'metrics.jsonl'
  file.write_text(file.read_text() + '{"epochs_done": 4, "los')  # a kill
  resumed = MetricsFile(tmp_path, 2)
  resumed.end_epoch(row(3), {})
  rows = [json.loads(line) for line in file.read_text().splitlines()]
  assert [r['epochs_done'] for r in rows] == [1, 2, 3]


EVENTS = """
import pathlib, sys
import numpy as np
from dnal_jax.workdir.tensorboard import TensorBoard, installed
assert installed()
folder = pathlib.Path(sys.argv[1])
row = {'epochs_done': 1, 'stage': 'search', 'step': 5, 'loss': 0.5}
gates = {'block1/out': np.array([0.0, 1.0, 1.0])}
TensorBoard(folder).end_epoch(row, gates)
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
  done = subprocess.run(
    [sys.executable, '-c', EVENTS, str(tmp_path)],
    capture_output=True,
    text=True,
    check=True,
  )
  assert done.stdout.splitlines() == [
    "['gates/block1/out', 'search/loss']",
    '5 0.5',
  ]
