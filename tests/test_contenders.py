"""Each contender of the benchmarks is the train step that its name says."""

from functools import partial
import math

import contenders
from contenders import Contender
from flax import linen
import jax
from jax.extend.mlir.dialects import stablehlo
import numpy as np
import pytest

from dnal_jax import models, nn, trees
from dnal_jax.cost import exact
from dnal_jax.data.batches import Batch
from dnal_jax.graph import surgery, walk
from dnal_jax.search import channel_gates
from dnal_jax.tpu import aot
from dnal_jax.training import losses
from dnal_jax.training.step import train_step

SHAPE, CLASSES, BATCH = (8, 8, 3), 10, 4
FAST_COMPILE = {'xla_backend_optimization_level': 0}


@pytest.fixture(
  scope='module',
  params=[
    'vgg7_digits',
    pytest.param('resnet8_digits', marks=pytest.mark.long),
  ],
)
def stages(request):
  """{name: contender} of every kind that the benchmarks time."""
  net = models.get(request.param).build(classes=CLASSES, width=0.5)
  half = contenders.prune_to(net, SHAPE, exact.count(net, SHAPE).macs / 2)
  return {
    'warmup': Contender(net, contenders.WARMUP),
    'search': Contender(net, contenders.SEARCH),
    'finetune': Contender(half, contenders.FINETUNE),
    'masked': contenders.masked(net, half.keep),
  }


def step_of(contender):
  """The train step (state, batch) -> (state, metrics), its state and batch."""
  batch = Batch(*contenders.batch(BATCH, SHAPE, CLASSES), np.ones(BATCH))
  step = partial(
    train_step,
    hyperparams=contender.stage.hyperparams(0),
    net=contender.net,
    stage=contender.stage,
    steps_per_epoch=100,
  )
  return step, contenders.begin(contender, SHAPE), batch


def run(contender, **changes):
  """(state before, state after, metrics) of one step."""
  step, state, batch = step_of(contender)
  state = state._replace(**changes)
  compiled = jax.jit(step).lower(state, batch).compile(FAST_COMPILE)
  return state, *compiled(state, batch)


def variables_of(state, gates):
  return {
    'params': state.params,
    'batch_stats': state.batch_stats,
    'gates': gates,
  }


def apply(net, variables):
  """Logits of the batch in train mode, and {gate: (ids, its output)}."""
  images, _ = contenders.batch(BATCH, SHAPE, CLASSES)
  outputs = {}

  def record(call, args, kwargs, context):
    out, layer = call(*args, **kwargs), context.module
    if isinstance(layer, nn.ConvBn) and layer.gate is not None and out.ids:
      outputs['/'.join(layer.gate.path)] = out.ids, out.x
    return out

  @jax.jit
  def logits_and_outputs(variables, images):
    with linen.intercept_methods(record):
      logits, _ = net.apply(
        variables, images, train=True, mutable=['batch_stats']
      )
    return logits, {gate: x for gate, (_, x) in outputs.items()}

  logits, maps = logits_and_outputs(variables, images)
  return logits, {gate: (outputs[gate][0], maps[gate]) for gate in maps}


def macs_of_program(contender):
  """Multiply-adds of all convolutions and matrix products of the train step, by
  the shapes in its program. Lowered for a TPU, where they are XLA's own."""
  step, state, batch = step_of(contender)
  traced = jax.jit(step).trace(state, batch)
  module = traced.lower(lowering_platforms=('tpu',)).compiler_ir('stablehlo')
  macs = 0

  def count(operation):
    nonlocal macs
    name = operation.name
    if name in ('stablehlo.convolution', 'stablehlo.dot_general'):
      left, right = (value.type.shape for value in operation.operands)
      outputs = math.prod(operation.results[0].type.shape)
      if name == 'stablehlo.convolution':
        numbers = stablehlo.ConvDimensionNumbers(
          operation.attributes['dimension_numbers']
        )
        channels = right[numbers.kernel_output_feature_dimension]
        # All but 1 / dilation of a dilated input is zeros between its rows.
        dilation = math.prod(operation.attributes['lhs_dilation'])
        macs += outputs * math.prod(right) // channels // dilation
      else:
        # Each input number has its part in outputs / kept inputs sums.
        kept = math.prod(left) * math.prod(right) // outputs
        macs += outputs * math.isqrt(kept)

  def visit(operation):
    count(operation)
    for region in operation.regions:
      for block in region:
        for inner in block:
          visit(inner.operation)

  visit(module.operation)
  return macs


@pytest.mark.parametrize('name', ['warmup', 'search', 'finetune', 'masked'])
def test_program_does_the_work_of_its_stage(name, stages):
  """Search has no kernel gradients but the head's, fine-tuning has the macs of
  the pruned network, masked fine-tuning those of the full one."""
  contender = stages[name]
  graph = walk.graph_of(contender.net, SHAPE)
  expected = aot.macs_with_gradients(contender.stage, graph)
  assert macs_of_program(contender) == BATCH * expected
  full = exact.count(stages['warmup'].net, SHAPE).macs
  share = exact.count(contender.net, SHAPE).macs / full
  if name == 'finetune':
    assert share == pytest.approx(0.5, abs=0.1)
  else:
    assert share == 1


@pytest.mark.slow
def test_warmup_trains_kernels_with_gates_at_one(stages):
  before, after, metrics = run(stages['warmup'])
  ones = channel_gates.open_gates(before.gate_logits)
  logits, _ = apply(stages['warmup'].net, variables_of(before, ones))
  _, labels = contenders.batch(BATCH, SHAPE, CLASSES)
  expected = losses.cross_entropy(logits, labels).sum()
  np.testing.assert_allclose(metrics['loss'], expected, rtol=1e-4)
  assert changed(before.params, after.params) == set(
    trees.flatten(before.params)
  )
  assert not changed(before.gate_logits, after.gate_logits)


@pytest.mark.slow
def test_search_trains_gates_and_the_head_only(stages):
  before, after, _ = run(stages['search'])
  heads = {p for p in trees.flatten(before.params) if p.startswith('head/')}
  assert changed(before.params, after.params) == heads
  gates = set(trees.flatten(before.gate_logits))
  assert changed(before.gate_logits, after.gate_logits) == gates


def changed(before, after):
  """The paths of what a step has changed."""
  after = trees.flatten(after)
  return {
    path
    for path, value in trees.flatten(before).items()
    if not np.array_equal(value, after[path])
  }


@pytest.mark.slow
def test_masked_is_the_pruned_network_at_full_size(stages):
  """Closed channels are exact zeros; logits, loss and update of the kept ones
  are those of the pruned network."""
  small, masked = stages['finetune'].net, stages['masked']
  net = masked.net
  before, after, metrics = run(masked)
  delta = masked.stage.hyperparams(0).delta
  gates = channel_gates.gate_values(before.gate_logits, delta)
  graphs = [walk.graph_of(n, SHAPE) for n in (net, small)]
  assert 0 < len(graphs[1].gates) <= len(graphs[0].gates)

  def pruned(state):
    return surgery.prune_variables(variables_of(state, gates), *graphs)

  logits, outputs = apply(net, variables_of(before, gates))
  small_logits, _ = apply(small, pruned(before))
  np.testing.assert_allclose(logits, small_logits, rtol=1e-4, atol=1e-5)
  closed = 0
  for gate, (ids, x) in outputs.items():
    mask = ~np.isin(ids, small.keep[gate])
    assert not np.any(x[..., mask])
    assert all(np.any(x[..., i]) for i in np.flatnonzero(~mask))
    closed += mask.sum()
  assert closed == sum(map(len, graphs[0].gates.values())) - sum(
    map(len, small.keep.values())
  )
  assert closed > 0

  variables = pruned(before)
  _, expected, small_metrics = run(
    stages['finetune'],
    params=variables['params'],
    batch_stats=variables['batch_stats'],
  )
  np.testing.assert_allclose(metrics['loss'], small_metrics['loss'], rtol=1e-4)
  updated = trees.flatten(pruned(after)['params'])
  for path, value in trees.flatten(expected.params).items():
    np.testing.assert_allclose(
      updated[path], value, rtol=1e-3, atol=1e-5, err_msg=path
    )


@pytest.mark.slow
@pytest.mark.parametrize('name', ['warmup', 'search', 'finetune'])
def test_pytorch_is_the_same_function(name, stages):
  """`contenders.pytorch` compares the losses itself."""
  pytest.importorskip('torch')
  images, labels = contenders.batch(BATCH, SHAPE, CLASSES)
  timed = contenders.pytorch(stages[name], images, labels, steps=1)
  assert timed() > 0
