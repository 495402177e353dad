"""Times of train steps of every stage, and PyTorch's for comparison.

  python benchmarks/train_step.py [--networks=resnet56_cifar,...] [--batch=128]
    [--dtype=float32] [--rounds=5] [--steps=4] [--width=1.0] [--image=SIDE]
    [--torch=eager,compile] [--multiples 1 8] [--masked]
    [--stages=warmup,...] [--json=FILE]

Times warm-up, search and fine-tuning (pruned to 50 % and 25 % of the macs; x8:
to widths that are multiples of 8) in interleaved rounds. Prints images/s, their
ratio to PyTorch's, the share of the speed of a large matrix product, and the
time relative to the warm-up. --masked adds fine-tuning as in the authors' code:
the full network with closed gates at 0. --stages selects stages by the
beginnings of their names; the warm-up is always timed. --torch= omits PyTorch.
"""

import argparse

import contenders
from contenders import Contender
import timing

from dnal_jax import models
from dnal_jax.cost import exact

CIFAR = 'vgg16_cifar,resnet56_cifar,mobilenet_v2_cifar'
# Passes through the network: forward, input gradients, weight gradients.
PASSES = {'warmup': 3, 'search': 2, 'masked': 3}


def contenders_of(net, shape, multiples, masked):
  """{name: contender} of all that can be timed."""
  macs = exact.count(net, shape).macs
  found = {
    'warmup': Contender(net, contenders.WARMUP),
    'search': Contender(net, contenders.SEARCH),
  }
  for share in (0.5, 0.25):
    for multiple in multiples:
      name = f'finetune {share:.0%}' + (f' x{multiple}' if multiple > 1 else '')
      small = contenders.prune_to(net, shape, macs * share, multiple=multiple)
      # With one multiple of channels in every layer, some networks are larger.
      if exact.count(small, shape).macs < 1.3 * macs * share:
        found[name] = Contender(small, contenders.FINETUNE)
  if masked:
    half = contenders.prune_to(net, shape, macs / 2)
    found['masked'] = contenders.masked(net, half.keep)
  return found


def measure(name, flags):
  """The rows of one network."""
  variant = models.get(name)
  side = flags.image or variant.image
  shape = (side, side, 3)
  net = variant.build(classes=variant.classes, width=flags.width)
  images, labels = contenders.batch(flags.batch, shape, variant.classes)
  # Streamed images are trained on one step per call.
  at_once = 64 if side <= 64 else 1
  kinds = [kind for kind in flags.torch.split(',') if kind]
  stages = contenders_of(net, shape, flags.multiples, flags.masked)
  if flags.stages:
    wanted = ('warmup', *flags.stages.split(','))
    stages = {k: v for k, v in stages.items() if k.startswith(wanted)}
  runs = {}
  for stage, contender in stages.items():
    arguments = contender, images, labels
    options = {'steps': flags.steps, 'dtype': flags.dtype}
    runs[stage, 'ours'] = contenders.ours(
      *arguments, **options, at_once=at_once
    )
    for kind in kinds if stage != 'masked' else []:
      runs[stage, kind] = contenders.pytorch(
        *arguments, **options, compiled=kind == 'compile'
      )
  seconds = timing.interleaved(runs, flags.rounds)
  peak = timing.peak(flags.dtype)
  full = exact.count(net, shape).macs
  rows = []
  for stage, contender in stages.items():
    macs = exact.count(contender.net, shape).macs
    head = {
      'network': name,
      'stage': stage,
      'batch': flags.batch,
      'dtype': flags.dtype,
      'macs': macs,
    }
    done = macs * PASSES.get(stage, 3) * flags.batch
    seconds_at_peak = done / peak
    rows.append(head | figures(stage, seconds, flags.batch, seconds_at_peak))
    rows[-1]['macs, fewer'] = full / macs
  return rows


def figures(stage, seconds, batch, seconds_at_peak):
  """The measured columns of a row, from {(stage, kind): seconds per round}."""
  took, warmup = seconds[stage, 'ours'], seconds['warmup', 'ours']
  found = {
    'seconds': timing.spread(took),
    'images/s': timing.spread([batch / s for s in took]),
    'of peak': seconds_at_peak / timing.spread(took)['median'],
    'over warmup': timing.ratio(took, warmup),
    'speed-up': timing.ratio(warmup, took),
  }
  for other, kind in seconds:
    if other == stage and kind != 'ours':
      theirs = seconds[stage, kind]
      found[f'over {kind}'] = timing.ratio(theirs, took)
      found[f'{kind} speed-up'] = timing.ratio(seconds['warmup', kind], theirs)
  return found


def show(rows):
  for row in rows:
    print(
      f'{row["network"]:20} {row["stage"]:17}'
      f' {timing.describe(row["images/s"], ".0f"):22} images/s'
      f' {row["of peak"]:6.1%} of peak'
      f'  time over warm-up {timing.describe(row["over warmup"])},'
      f' macs {1 / row["macs, fewer"]:.2f}'
      f' ({row["speed-up"]["median"] / row["macs, fewer"]:.2f} of ideal)'
      + ''.join(
        f'  {key} {timing.describe(value)}'
        for key, value in row.items()
        if key.startswith('over ') and key != 'over warmup'
      ),
      flush=True,
    )


def main():
  parser = argparse.ArgumentParser()
  parser.add_argument('--networks', default=CIFAR)
  parser.add_argument('--batch', type=int, default=128)
  parser.add_argument('--dtype', default='float32')
  parser.add_argument('--rounds', type=int, default=5)
  parser.add_argument('--steps', type=int, default=4)
  parser.add_argument('--width', type=float, default=1.0)
  parser.add_argument('--image', type=int)
  parser.add_argument('--torch', default='eager')
  parser.add_argument('--stages')
  parser.add_argument('--multiples', type=int, nargs='+', default=[1, 8])
  parser.add_argument('--masked', action='store_true')
  parser.add_argument('--json')
  flags = parser.parse_args()
  machine = timing.machine()
  print(', '.join(f'{k} {v}' for k, v in machine.items()))
  print(
    f'{flags.rounds} interleaved rounds of {flags.steps} steps, batch'
    f' {flags.batch}, {flags.dtype}; median (min to max).'
    ' "over eager": images/s over those of PyTorch'
  )
  rows = []
  for name in flags.networks.split(','):
    found = measure(name, flags)
    show(found)
    rows += found
  timing.save(flags.json, machine, train_step=rows)


if __name__ == '__main__':
  main()
