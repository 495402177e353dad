"""Sizes of every network, exact and as in the paper, to the integer."""

import importlib
import json
import pathlib
import subprocess
import sys

import numpy as np
import pytest

from dnal_jax import models
from dnal_jax.config import parse_config
from dnal_jax.cost import exact, reference
from dnal_jax.graph import surgery, walk
from dnal_jax.models import proxyless

ROOT = pathlib.Path(__file__).parent.parent
# params, macs, reference params, reference macs, gated channels, gates. The
# reference figures round to the baselines of the paper's tables.
PUBLISHED = {
  'vgg16': (
    *(138_382_376, 15_470_264_320, 138_365_992, 15_470_281_960),
    *(4_224, 13),
  ),
  'vgg16_cifar': (
    *(14_991_946, 313_463_808, 14_990_922, 313_472_778),
    *(4_224, 13),
  ),
  'resnet50': (
    *(25_557_032, 4_089_184_256, 25_549_352, 4_089_207_976),
    *(22_720, 49),
  ),
  # 1512.03385, table 6, has 0.27 M params; the paper's tables have no row.
  'resnet20_cifar': (
    *(269_722, 40_551_040, 269_722, 40_551_738),
    *(688, 19),
  ),
  'resnet56_cifar': (
    *(853_018, 125_485_696, 853_018, 125_487_738),
    *(2_032, 55),
  ),
  'mobilenet_v2': (
    *(3_504_872, 300_774_272, 3_504_872, 300_792_328),
    *(9_920, 35),
  ),
  'mobilenet_v2_cifar': (
    *(2_296_922, 91_154_944, 2_296_922, 91_172_498),
    *(9_920, 35),
  ),
  'proxyless': (
    *(16_034_168, 2_260_347_776, 16_034_168, 2_260_456_600),
    *(60_704, 255),
  ),
}
OURS = {
  'vgg7_digits',
  'resnet8_digits',
  'mobilenet_v2_digits',
  'proxyless_digits',
}


def build(name, **kwargs):
  variant = models.get(name)
  shape = (variant.image, variant.image, 3)
  return variant.build(classes=variant.classes, **kwargs), shape


@pytest.mark.parametrize('name', PUBLISHED)
def test_published_sizes(name):
  net, shape = build(name)
  counts = exact.count(net, shape)
  gates = walk.graph_of(net, shape).gates
  assert (
    counts.params,
    counts.macs,
    counts.reference_params,
    counts.reference_macs,
    sum(map(len, gates.values())),
    len(gates),
  ) == PUBLISHED[name]


def test_table_is_complete():
  assert set(models.NETWORKS) == set(PUBLISHED) | OURS


@pytest.mark.parametrize(
  ('config', 'variant', 'name'),
  [
    ('vgg16_cifar10', '', 'vgg16_cifar'),
    ('resnet56_cifar10', 'baseline', 'resnet56_cifar'),
    ('mbv2_cifar10', '', 'mobilenet_v2_cifar'),
    ('vgg16_imagenet', '', 'vgg16'),
    ('resnet50_imagenet', '', 'resnet50'),
    ('mbv2_imagenet', '', 'mobilenet_v2'),
    ('proxyless_imagenet', '', 'proxyless'),
  ],
)
def test_each_config_is_of_the_published_network(config, variant, name):
  module = importlib.import_module(f'configs.{config}')
  parsed = parse_config(module.get_config(variant).to_dict())
  assert (parsed.build(), parsed.image_shape) == build(name)


def test_summary_command():
  def printed(*flags):
    command = (sys.executable, '-m', 'dnal_jax.summary', *flags)
    return subprocess.check_output(command, cwd=ROOT, text=True)

  name = 'resnet56_cifar'
  got = json.loads(printed(f'--network={name}', '--json'))
  assert tuple(got['baseline'].values())[:4] == PUBLISHED[name][:4]
  assert got['gates']['total'] == PUBLISHED[name][4]
  assert sum(row['macs'] for row in got['layers']) == PUBLISHED[name][1]
  table = printed('--config=configs/quickstart.py')
  assert 'conv3_2' in table
  assert '2,379,008' in table


def test_half_of_resnet50_has_more_than_the_reference_counts():
  """The paper's counts leave out what shortcuts keep alive: for a ResNet50 with
  half of its gates closed 8.9 M parameters of the 11.0 M that it has."""
  net, shape = build('resnet50')
  rng = np.random.default_rng(0)
  keep = {
    gate: tuple(i for i in ids if rng.random() < 0.5)
    for gate, ids in walk.graph_of(net, shape).gates.items()
  }
  counts = exact.count(surgery.with_keep(net, keep), shape)
  assert counts.params == pytest.approx(11.01e6, rel=0.02)
  assert counts.reference_params == pytest.approx(8.93e6, rel=0.02)
  assert counts.reference_macs < counts.macs


def test_reference_count_by_hand():
  """Two channels kept in every gate of the digits VGG, added up by hand."""
  variant = models.get('vgg7_digits')
  full = variant.build(classes=10)
  gates = walk.graph_of(full, (8, 8, 1)).gates
  net = surgery.with_keep(full, dict.fromkeys(gates, (0, 1)))
  counts = exact.count(net, (8, 8, 1))
  convs = 9 * 1 * 2 + 5 * (9 * 2 * 2)
  offsets = 6 * 3 * 2  # bias, scale, bias of the norm
  assert counts.reference_params == convs + offsets + 2 * 10 + 10
  macs = 9 * 2 * 64 + 36 * 64 + 36 * (16 + 16 + 4 + 4) + 2 * 10
  assert counts.macs == macs
  assert counts.reference_macs == macs + 6 * 2 * 2 + 10


def test_reference_count_of_a_sum_reads_what_any_candidate_keeps():
  """Two candidates of the first block keep channels (0, 1) and (1, 2), and its
  shortcut is ignored: the layers of the next block read three channels."""
  net = models.get('proxyless_digits').build(classes=10)
  full = walk.graph_of(net, (8, 8, 1))
  keep = dict.fromkeys(full.gates, ())
  keep |= {'block1_2/3x3_e3/out': (0, 1), 'block1_2/7x7_e6/out': (1, 2)}
  keep |= {'block2_1/5x5_e3/hidden': (0,)}
  params, _ = reference.reference_counts(full, keep)
  norms = 2 * (2 + 2 + 1 + 1)  # of the two `out`, an expansion, its depthwise
  assert params == 3 + 25 + norms + 10  # expansion, depthwise, the logits' bias


def test_survivors_are_the_candidates_with_outputs():
  before = {
    f'block3_1/{name}/{gate}': range(n)
    for name, n in (('3x3_e3', 120), ('5x5_e6', 240), ('7x7_e3', 120))
    for gate, n in (('hidden', n), ('out', 40))
  }
  before |= {'block3_2/3x3_e3/hidden': (0, 1), 'block3_2/3x3_e3/out': (0, 1)}
  after = {
    'block3_1/3x3_e3/hidden': range(40),
    'block3_1/3x3_e3/out': (7,),
    'block3_1/7x7_e3/out': (3,),
  }
  assert proxyless.survivors(before, after) == {
    'block3_1': ['3x3 e3 40/120', '7x7 e3 0/120'],
    'block3_2': [],
  }
