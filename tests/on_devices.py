"""A short run of all stages on several virtual CPU devices.

  python tests/on_devices.py FOLDER --network=NAME [--devices=N] [--width=X]
    [--epochs=N] [--threshold=X]

An epoch has two steps. The process is one of several where
JAX_COORDINATOR_ADDRESS and the variables beside it say so. Writes to
FOLDER/measured.json the losses of all epochs, the channels that were kept, and
for each stage the bytes of its step's collective operations.

The learning rates are low and the gates stay soft: of a search that sharpens
its gates, rounding alone makes another one within ten steps. The threshold of
the cut is --threshold, else the middle of the widest gap between the gates, so
that rounding does not decide which channels are kept; it is written, too.
"""

import argparse
from functools import partial
import json
import pathlib

import jax
import numpy as np

from configs import quickstart
from dnal_jax import models, train
from dnal_jax.config import parse_config
from dnal_jax.models import mobilenet_v2
from dnal_jax.parallel import processes
from dnal_jax.search import channel_gates
from dnal_jax.tpu import hlo
from dnal_jax.training import loop, prune

STEPS = 2  # of an epoch
_BATCH = 160
# Learning rate of the weights, and penalty.
_SCHEDULES = {
  'vgg7_digits': (0.001, 0.001),
  'mobilenet_v2_digits': (0.005, 0.0002),
  'mobilenet_v2_three_blocks': (0.005, 0.0002),
}
# One block without and one with an expansion, and one with a sum.
THREE_BLOCKS = models.Variant(
  partial(
    mobilenet_v2.MobileNetV2,
    stages=((1, 8, 1, 1), (4, 16, 2, 2)),
    stem_stride=1,
    expand_all=True,
    shortcut_conv=True,
    stem_channels=16,
    last_channels=64,
  ),
  8,
  10,
)


def config(args):
  config = quickstart.get_config()
  config.network.name = args.network
  config.network.width = args.width
  config.batch_size = _BATCH
  config.data.train_limit = STEPS * _BATCH
  rate, config.penalty = _SCHEDULES[args.network]
  for stage in ('warmup', 'search', 'finetune'):
    config.stages[stage].epochs = args.epochs
  for stage in ('warmup', 'finetune'):
    config.stages[stage].train.weights.lr.base = rate
  config.stages.search.delta_end = 2.0
  config.stages.search.train.gates.lr.base = 0.1
  config.stages.finetune.gate_threshold = 0.5
  return config.to_dict()


def middle_of_widest_gap(gates):
  """Between neighbours, of the gates that are not among the lowest or the
  highest quarter."""
  values = np.sort(np.concatenate(jax.tree.leaves(gates)))
  values = values[len(values) // 4 : -(len(values) // 4)]
  at = np.diff(values).argmax()
  return float(values[at] + values[at + 1]) / 2


def record_collectives():
  """{stage: {operation: bytes}}, filled in while a run trains."""
  moved, run_steps = {}, loop.CompiledStage.run_steps

  def run_and_record(self, *args):
    state_and_metrics = run_steps(self, *args)
    name = self._stage.name
    if name not in moved:
      moved[name] = hlo.collectives(self.program_text())
    assert self._steps._cache_size() == 1  # compiled once for all epochs
    return state_and_metrics

  loop.CompiledStage.run_steps = run_and_record
  return moved


def prune_at(threshold):
  """Makes runs prune at `threshold`, or in the widest gap; returns a list that
  will hold the threshold."""
  used, prune_model = [], prune.prune_model

  def prune_there(model, params, gate_logits, batch_stats, cut, **kwargs):
    soft = channel_gates.soft_gates(gate_logits, cut.search.delta_end)
    used.append(middle_of_widest_gap(soft) if threshold is None else threshold)
    cut = cut._replace(threshold=used[0])
    return prune_model(model, params, gate_logits, batch_stats, cut, **kwargs)

  prune.prune_model = prune_there
  # Gates are undecided on purpose.
  prune.advice.check_decided = lambda soft, cut: None
  return used


def main():
  parser = argparse.ArgumentParser()
  parser.add_argument('folder', type=pathlib.Path)
  parser.add_argument('--network', required=True, choices=_SCHEDULES)
  parser.add_argument('--devices', type=int, default=1)
  parser.add_argument('--width', type=float, default=1.0)
  parser.add_argument('--epochs', type=int, default=3)
  parser.add_argument('--threshold', type=float)
  args = parser.parse_args()
  jax.config.update('jax_num_cpu_devices', args.devices)
  alone = {'coordinator_address', 'num_processes', 'process_id'}
  processes.join('auto', **dict.fromkeys(alone))  # before anything uses JAX
  if args.network == 'mobilenet_v2_three_blocks':
    models.register(args.network, THREE_BLOCKS)
  moved, threshold = record_collectives(), prune_at(args.threshold)
  values = config(args)
  train.run(parse_config(values), values, args.folder)
  if processes.is_primary():
    rows = (args.folder / 'metrics.jsonl').read_text().splitlines()
    kept = json.loads((args.folder / 'architecture.json').read_text())['gates']
    measured = {
      'losses': [json.loads(row)['loss'] for row in rows],
      'kept': kept,
      'moved': moved,
      'threshold': threshold[0],
    }
    (args.folder / 'measured.json').write_text(json.dumps(measured))


if __name__ == '__main__':
  main()
