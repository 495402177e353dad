"""Figures of compiled programs, chips and steps, without compiling any."""

import math

import pytest

from configs import quickstart
from dnal_jax import models, trees
from dnal_jax.config import parse_config
from dnal_jax.cost import exact
from dnal_jax.graph import walk
from dnal_jax.tpu import aot, hlo, topologies

# Compiled programs.

PROGRAM = """
  %a.1 = (f32[32]{0:T(128)S(1)}, /*index=1*/bf16[3,3,1,32]{3,2,1,0:T(8,128)}) \
all-reduce(%x, %y), channel_id=1, to_apply=%sum
  %b = f32[32]{0} get-tuple-element(%a.1), index=0, metadata={op_name="all-reduce"}
  %c = (f32[4]{0}, f32[16]{0}) all-gather-start(%b), dimensions={0}
  %d = f32[16]{0} all-gather-done(%c)
  ROOT %e = pred[] all-reduce(%p), to_apply=%and
  %f = f32[8]{0} all-reduce-start(%g), to_apply=%sum
  %h = f32[8]{0} all-reduce-done(%f)
"""  # noqa: E501


def test_bytes_of_collectives():
  assert hlo.collectives(PROGRAM) == {
    'all-reduce': 4 * 32 + 2 * 9 * 32 + 1 + 4 * 8,
    'all-gather': 4 * 16,
  }
  assert hlo.collectives('%x = f32[8]{0} add(%y, %z)') == {}


# Train steps.


def stage(name):
  by_name = parse_config(quickstart.get_config().to_dict()).stages
  return next(stage for stage in by_name if stage.name == name)


def test_macs_with_gradients():
  """The image has no gradient; a search has the head's kernel gradient only."""
  net = models.get('vgg7_digits').build(classes=10)
  graph = walk.graph_of(net, (8, 8, 1))
  macs, first, head = exact.count(net, (8, 8, 1)).macs, 64 * 9 * 32, 128 * 10
  found = aot.macs_with_gradients(stage('warmup'), graph)
  assert found == 3 * macs - first
  found = aot.macs_with_gradients(stage('search'), graph)
  assert found == 2 * macs - first + head


@pytest.mark.parametrize('network', ['vgg7_digits', 'mobilenet_v2_digits'])
def test_ideal_all_reduce(network):
  graph = walk.graph_of(models.get(network).build(classes=10), (8, 8, 1))
  params, head, moments = (
    4 * sum(math.prod(a.shape) for a in trees.flatten(tree).values())
    for tree in (
      graph.shapes['params'],
      graph.shapes['params']['head'],
      graph.shapes['batch_stats'],
    )
  )
  found = aot.ideal_all_reduce(stage('warmup'), graph)
  assert found == params + moments
  found = aot.ideal_all_reduce(stage('search'), graph)
  assert found == head + 2 * moments


def test_bounds_by_hand():
  """16 chips of 197 TFLOP/s, 819 GB/s and 200 GB/s."""
  seconds = topologies.bounds(
    topologies.CHIPS['v5e'],
    16,
    macs=16 * 197 * 10**12,
    bytes_accessed=819e9,
    all_reduced=16 * 10**11,
  )
  expected = {'compute': 2, 'memory': 1, 'all_reduce': 15}
  assert seconds == pytest.approx(expected)


@pytest.mark.parametrize(
  ('chip', 'number', 'flops', 'all_reduce'),
  [
    ('v4', 4096, 1.1e18, 1.1e15),
    ('v5e', 256, 50.63e15, 51.2e12),
    ('v5p', 8960, 4.11e18, None),
    ('v6e', 256, 234.9e15, 102.4e12),
  ],
)
def test_chips_times_pod_size_are_the_published_pods(
  chip, number, flops, all_reduce
):
  assert topologies.CHIPS[chip].flops * number == pytest.approx(flops, rel=0.03)
  if all_reduce:
    total = topologies.CHIPS[chip].interconnect * number
    assert total == pytest.approx(all_reduce, rel=0.01)
