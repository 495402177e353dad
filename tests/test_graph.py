"""The graph of a network, and where two networks begin to differ."""

from functools import partial
from typing import Any

from flax import linen
import jax
import jax.numpy as jnp
from keeping import masks, patterns, randomised
import numpy as np

from dnal_jax import models
from dnal_jax.graph import difference, surgery, walk
from dnal_jax.models import resnet


def test_a_closed_branch_vanishes_and_a_closed_trunk_is_named():
  net = models.get('resnet8_digits').build(classes=10)
  shape = (8, 8, 1)
  gates = walk.graph_of(net, shape).gates
  branch = walk.graph_of(
    surgery.with_keep(net, {**gates, 'block2_1/out': ()}), shape
  )
  assert 'block2_1' not in branch.shapes['params']
  assert branch.cut_off_by == ()
  trunk = walk.graph_of(surgery.with_keep(net, {**gates, 'stem': ()}), shape)
  assert trunk.cut_off_by == ('stem',)


def test_a_stem_that_a_shortcut_reads_is_not_pruned():
  """At width 1/4 the first block of MobileNetV2 has a shortcut."""
  for width, kept in ((1.0, 1), (0.25, 8)):
    net = models.get('mobilenet_v2').build(classes=10, width=width)
    gates = walk.graph_of(net, (32, 32, 3)).gates
    small = surgery.with_keep(net, {**gates, 'block1_1/hidden': (0,)})
    graph = walk.graph_of(small, (32, 32, 3))
    assert len(graph.layers['stem_conv'].out_ids) == kept


def small_resnet(block: Any = resnet.BasicBlock):
  """A stem and two blocks, the second with another width."""
  fields = {'blocks': (1, 1), 'features': (4, 8), 'stem_layer': (4, 3, 1)}
  return models.get('resnet8_digits').build(classes=3, block=block, **fields)


def test_rematerialised_blocks_have_the_same_graph_and_are_pruned():
  rng = np.random.default_rng(4)
  shape = (4, 4, 1)
  net, remat = small_resnet(), small_resnet(linen.remat(resnet.BasicBlock))
  graph = walk.graph_of(remat, shape)
  assert graph == walk.graph_of(net, shape)
  assert list(graph.gates) == [
    *('stem', 'block1_1/mid', 'block1_1/out', 'block2_1/mid', 'block2_1/out')
  ]
  variables = jax.tree.map(np.float32, randomised(net, shape, rng))
  images = rng.normal(size=(8, *shape)).astype(np.float32)
  keep = patterns(graph.gates, rng)['half']
  masked = {**variables, 'gates': masks(graph.gates, keep)}
  small = surgery.with_keep(remat, keep)
  pruned = surgery.prune_variables(masked, graph, walk.graph_of(small, shape))
  want = jax.jit(net.apply)(masked, images)
  got = jax.jit(small.apply)(pruned, images)
  np.testing.assert_allclose(got, want, rtol=0, atol=1e-5 * abs(want).max())
  compare = partial(difference.first_difference, remat, masked, small)
  assert compare(pruned, images, 1e-4) is None
  kernel = pruned['params']['block1_1']['conv2']['kernel']
  pruned['params']['block1_1']['conv2']['kernel'] = 2 * kernel
  assert compare(pruned, images, 1e-4) == 'block1_1/out'


def test_first_difference_is_the_first_gate_that_differs():
  rng = np.random.default_rng(3)
  net, shape = models.get('vgg7_digits').build(classes=10), (8, 8, 1)
  variables = randomised(net, shape, rng)
  images = jnp.asarray(rng.normal(size=(4, *shape)), jnp.float32)
  graph = walk.graph_of(net, shape)
  keep = {gate: ids[1::2] for gate, ids in graph.gates.items()}
  masked = {**variables, 'gates': masks(graph.gates, keep)}
  small = surgery.with_keep(net, keep)
  pruned = surgery.prune_variables(masked, graph, walk.graph_of(small, shape))
  compare = partial(difference.first_difference, net, masked, small)
  assert compare(pruned, images, 1e-4) is None
  pruned['params']['conv2_2']['bias'] += 0.1
  pruned['batch_stats']['conv2_2']['bn']['mean'] += 0.3
  assert compare(pruned, images, 1e-4) == 'gate2_2'
