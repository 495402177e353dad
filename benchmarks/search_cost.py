"""Cost of a whole DNAL run, in units of training the baseline once.

  PYTHONPATH=. python benchmarks/search_cost.py [--networks=vgg16_cifar,...]
    [--batch=N] [--rounds=3] [--steps=4] [--width=1.0] [--image=SIDE]
    [--json=FILE]

For every published row of a network, adds up warm-up, search and fine-tuning:
the measured times of a step, times the epochs of our configs (on ImageNet the
published ones). Fine-tuning is timed on networks with random channels pruned to
the published macs. The sum is divided by the time of the baseline's epochs of
warm-up steps. "masked" is the same for fine-tuning as in the authors' code, the
full network with closed gates at 0.
"""

import argparse

import contenders
from contenders import Contender
import timing

from dnal_jax import models
from dnal_jax.config import read_config
from dnal_jax.cost import exact

# {network: (config, batch on a CPU, {lambda: published macs})}
PUBLISHED = {
  'vgg16_cifar': (
    'vgg16_cifar10',
    128,
    {
      '1e-5': 211.89e6,
      '5e-5': 195.14e6,
      '1e-4': 161.97e6,
      '2e-4': 61.23e6,
      '3e-4': 29.77e6,
      '4e-4': 22.04e6,
      '5e-4': 16.65e6,
    },
  ),
  'resnet56_cifar': (
    'resnet56_cifar10',
    128,
    {
      '1e-5': 93.94e6,
      '5e-5': 83.11e6,
      '1e-4': 36.94e6,
      '2e-4': 8.63e6,
      '3e-4': 3.44e6,
      '4e-4': 2.38e6,
      '5e-4': 1.68e6,
    },
  ),
  'mobilenet_v2_cifar': (
    'mbv2_cifar10',
    128,
    {
      '1e-5': 59.47e6,
      '5e-5': 54.98e6,
      '1e-4': 36.63e6,
      '2e-4': 13.35e6,
      '3e-4': 7.81e6,
      '4e-4': 5.4e6,
      '5e-4': 4.5e6,
    },
  ),
  'vgg16': ('vgg16_imagenet', 4, {'1e-4': 4.69e9}),
  'resnet50': (
    'resnet50_imagenet',
    16,
    {'5e-5': 2.07e9, '6e-5': 1.75e9, '7e-5': 1.44e9, '1e-4': 0.88e9},
  ),
  'mobilenet_v2': (
    'mbv2_imagenet',
    16,
    {'6e-5': 217.24e6, '7e-5': 207.25e6},
  ),
}


def epochs_of(config):
  """{stage: epochs} of a config, including the baseline."""
  stages = read_config(config).to_dict()['stages']
  return {name: stage['epochs'] for name, stage in stages.items()}


def measure(name, flags):
  """The rows of one network."""
  config, batch, published = PUBLISHED[name]
  variant = models.get(name)
  side = flags.image or variant.image
  shape = (side, side, 3)
  net = variant.build(classes=variant.classes, width=flags.width)
  images, labels = contenders.batch(flags.batch or batch, shape, 10)
  at_once = 64 if side <= 64 else 1
  published_macs = exact.count(
    variant.build(classes=variant.classes), shape_of(variant)
  ).macs
  full = exact.count(net, shape).macs
  nets = {
    key: contenders.prune_to(net, shape, full * macs / published_macs)
    for key, macs in published.items()
  }
  some = next(iter(nets.values()))
  stages = {
    'warmup': Contender(net, contenders.WARMUP),
    'search': Contender(net, contenders.SEARCH),
    'masked': contenders.masked(net, some.keep),
    **{key: Contender(n, contenders.FINETUNE) for key, n in nets.items()},
  }
  runs = {
    key: contenders.ours(
      contender, images, labels, steps=flags.steps, at_once=at_once
    )
    for key, contender in stages.items()
  }
  seconds = timing.interleaved(runs, flags.rounds)
  epochs = epochs_of(config)
  return [
    {
      'network': name,
      'lambda': key,
      'macs': published[key],
      'macs, share': exact.count(nets[key], shape).macs / full,
      'step, share': timing.ratio(seconds[key], seconds['warmup']),
      'epochs': epochs,
      'ours': cost(seconds, epochs, key),
      'masked': cost(seconds, epochs, 'masked'),
    }
    for key in published
  ]


def shape_of(variant):
  return variant.image, variant.image, 3


def cost(seconds, epochs, finetune):
  """Spread over the rounds of a whole run's time over the baseline's."""
  rounds = zip(
    *(seconds[key] for key in ('warmup', 'search', finetune)), strict=True
  )
  return timing.spread(
    [
      (
        epochs['warmup'] * warmup
        + epochs['search'] * search
        + epochs['finetune'] * tuned
      )
      / (epochs['baseline'] * warmup)
      for warmup, search, tuned in rounds
    ]
  )


def main():
  parser = argparse.ArgumentParser()
  parser.add_argument('--networks', default=','.join(PUBLISHED))
  parser.add_argument('--batch', type=int)
  parser.add_argument('--rounds', type=int, default=3)
  parser.add_argument('--steps', type=int, default=4)
  parser.add_argument('--width', type=float, default=1.0)
  parser.add_argument('--image', type=int)
  parser.add_argument('--json')
  flags = parser.parse_args()
  machine = timing.machine()
  print(', '.join(f'{k} {v}' for k, v in machine.items()))
  print(
    f'{flags.rounds} interleaved rounds of {flags.steps} steps; a whole run'
    ' over training the baseline once: median (min to max)'
  )
  rows = []
  for name in flags.networks.split(','):
    for row in measure(name, flags):
      rows.append(row)
      print(
        f'{name:20} {row["lambda"]}: macs x {row["macs, share"]:.2f}, step x'
        f' {timing.describe(row["step, share"])};'
        f' run {timing.describe(row["ours"])},'
        f' masked at full size {timing.describe(row["masked"])}',
        flush=True,
      )
  timing.save(flags.json, machine, search_cost=rows)


if __name__ == '__main__':
  main()
