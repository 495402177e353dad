"""A short run of all stages on so many virtual CPU devices, told step by step.

  python tests/on_devices.py DEVICES NETWORK FOLDER [THRESHOLD]

One of several processes where JAX_COORDINATOR_ADDRESS and its kin say so.
Writes to FOLDER/told.json the losses of all steps, what was kept, and for each
stage the collective operations of a step with their bytes. The schedule is a
calm one: of a search that sharpens its gates, rounding alone makes another one
within ten steps. The cut is at THRESHOLD, else where the gates have the widest
gap between them, which is told, too: no rounding decides what is kept.
"""

import json
import pathlib
import sys

import jax
import numpy as np

from configs import quickstart
from dnal_jax import train
from dnal_jax.config import parse_config
from dnal_jax.parallel import processes
from dnal_jax.search import channel_gates
from dnal_jax.tpu import hlo
from dnal_jax.training import loop
from dnal_jax.workdir import run_state

# (learning rate of weights, penalty): something must be learned, something must
# be closed, and no gate be so near to the threshold that rounding decides.
_SCHEDULES = {
  'vgg7_digits': (0.001, 0.001),
  'mobilenet_v2_digits': (0.005, 0.0002),
}


def config(network):
  """Four epochs of five steps in each stage; half of the gates are kept."""
  config = quickstart.get_config()
  config.network.name = network
  config.batch_size = 160
  config.data.train_limit = 5 * 160
  rate, config.penalty = _SCHEDULES[network]
  for stage in ('warmup', 'search', 'finetune'):
    config.stages[stage].epochs = 4
  for stage in ('warmup', 'finetune'):
    config.stages[stage].train.weights.lr.base = rate
  config.stages.search.delta_end = 2.0
  config.stages.search.train.gates.lr.base = 0.1
  config.stages.finetune.gate_threshold = 0.5
  return config.to_dict()


def widest_gap(gates):
  """The middle of the widest gap between neighbours, of the gates that are not
  among the lowest or the highest quarter."""
  values = np.sort(np.concatenate(jax.tree.leaves(gates)))
  values = values[len(values) // 4 : -(len(values) // 4)]
  at = np.diff(values).argmax()
  return float(values[at] + values[at + 1]) / 2


def main():
  devices, network, folder, *threshold = sys.argv[1:]
  jax.config.update('jax_num_cpu_devices', int(devices))
  alone = {'coordinator_address', 'num_processes', 'process_id'}
  processes.join('auto', **dict.fromkeys(alone))
  losses, moved = [], {}
  threshold = [float(told) for told in threshold]
  add, steps = run_state.RunState.add, loop.CompiledStage.train

  def recorded(self, metrics, seconds):
    losses.extend(float(step['loss']) for step in metrics)
    add(self, metrics, seconds)

  def looked_at(self, *arguments, **kwargs):
    done = steps(self, *arguments, **kwargs)
    stage = ('warmup', 'search', 'finetune')[(len(losses) // 20)]
    if stage not in moved:
      moved[stage] = hlo.collectives(self.text())
    assert self._steps._cache_size() == 1  # compiled once, for all epochs
    return done

  def prune(network, params, gate_logits, batch_stats, cut, **kwargs):
    if not threshold:
      threshold.append(
        widest_gap(channel_gates.soft_gates(gate_logits, cut.search.delta_end))
      )
    cut = cut._replace(threshold=threshold[0])
    return pruned(network, params, gate_logits, batch_stats, cut, **kwargs)

  pruned, prune.prune = prune.prune, prune
  run_state.RunState.add = recorded
  loop.CompiledStage.train = looked_at
  values = config(network)
  workdir = pathlib.Path(folder)
  train.run(parse_config(values), values, workdir)
  if processes.is_primary():
    kept = json.loads((workdir / 'architecture.json').read_text())['gates']
    (workdir / 'told.json').write_text(
      json.dumps(
        {'losses': losses, 'kept': kept, 'moved': moved, 'cut_at': threshold[0]}
      )
    )


if __name__ == '__main__':
  main()
