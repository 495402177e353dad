"""One train step of any stage, in JAX and in PyTorch, ready to be timed.

The JAX step runs in the training loop's own `loop.CompiledStage`, on one batch
in device memory. PyTorch's batch is in device memory too, channels last, with
the same kind of optimizer.

Each contender does one untimed step before the timed ones. On a CPU the first
step after another contender's takes up to twice as long as those that follow
(PyTorch's threads still spin, memory is allocated anew); training has no such
steps.

`tests/test_contenders.py` holds each contender's program to its name.
"""

from functools import partial
import time
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from dnal_jax import nn
from dnal_jax.data.batches import Batch
from dnal_jax.graph import surgery, walk
from dnal_jax.parallel import stopping
from dnal_jax.search import channel_gates
from dnal_jax.training import loop, losses, train_state
from dnal_jax.training.optimizer import ParamGroup
from dnal_jax.training.schedule import LearningRate
from dnal_jax.training.stages import Stage

RATE = LearningRate(0.01)
WEIGHTS = {'weights': ParamGroup('params/.*', RATE, weight_decay=1e-4)}
WARMUP = Stage('warmup', 1000, WEIGHTS)
FINETUNE = Stage('finetune', 1000, WEIGHTS, gate_threshold=0.9)
SEARCH = Stage(
  'search',
  10,
  {
    'gates': ParamGroup('gates/.*', RATE),
    'head': ParamGroup('params/head/.*', RATE),
  },
  delta_end=1e4,
  penalty=1e-4,
)
# In its one epoch delta is 1e4, so gate logits of -1 and 1 give gates that are
# exactly 0 and 1 in float32. The logits are not trained.
MASKED = Stage('masked', 1, WEIGHTS, delta_end=1e4)


class Contender(NamedTuple):
  """A network and the stage that trains it."""

  net: Any
  stage: Stage
  keep: nn.Keep = nn.KEEP_ALL  # masked: the open channels of each gate


def masked(net: Any, keep: nn.Keep) -> Contender:
  """Fine-tuning as in the authors' code: the full network, closed gates at 0.

  The gates are arguments of the compiled step, as they are tensors in the
  authors' code: the compiler does not know which channels are zero, so it
  computes all of them. The step has the sigmoid of the gates on top of a
  warm-up step, a few hundred numbers.
  """
  return Contender(net, MASKED, keep)


class OneBatch:
  """A `Source` (dnal_jax/data/sources.py) that repeats one batch."""

  steps_per_epoch = 100

  def __init__(self, images, labels, steps_per_call):
    self._inputs = jax.device_put((images, labels))
    self.steps_per_call = steps_per_call

  def inputs(self, step, n):
    del step, n
    return self._inputs

  def train_batch(self, inputs, step):
    del step
    images, labels = inputs
    return Batch(images, labels, jnp.ones(len(labels)))


def batch(size, shape, classes):
  """Noise images and random labels, the same for all contenders."""
  rng = np.random.default_rng(0)
  images = rng.normal(size=(size, *shape)).astype(np.float32)
  return images, rng.integers(0, classes, size).astype(np.int32)


def initial(net, shape):
  """(params, batch_stats) of a full or pruned network."""
  variables = jax.jit(net.init)(jax.random.key(0), jnp.zeros((1, *shape)))
  return variables['params'], variables['batch_stats']


def begin(contender, shape):
  """The train state at the start of the contender's stage."""
  params, batch_stats = initial(contender.net, shape)
  return jax.jit(partial(train_state.create_train_state, contender.stage))(
    params, _gate_logits(contender, shape), batch_stats
  )


def _gate_logits(contender, shape):
  """0 as at the start of a search; masked: 1 for open gates, -1 for others."""
  graph = walk.graph_of(contender.net, shape)

  def logits(path, g):
    gate = '/'.join(key.key for key in path[:-1])
    if gate not in contender.keep:
      return np.zeros(g.shape, g.dtype)
    is_open = np.isin(graph.gates[gate], contender.keep[gate])
    return np.where(is_open, 1, -1).astype(g.dtype)

  return jax.tree_util.tree_map_with_path(logits, graph.shapes.get('gates', {}))


def prune_to(net, shape, macs, *, multiple=1):
  """The network pruned to about `macs`: in every layer the same share of random
  channels is kept, in widths that are multiples of `multiple`."""
  gates = walk.graph_of(net, shape).gates
  rng = np.random.default_rng(0)
  order = {path: rng.permutation(ids) for path, ids in gates.items()}

  def at(share):
    keep = {}
    for path, ids in order.items():
      n = multiple * max(1, round(share * len(ids) / multiple))
      keep[path] = tuple(sorted(int(i) for i in ids[:n]))
    return surgery.with_keep(net, keep)

  low, high = 0.0, 1.0
  for _ in range(8):
    middle = (low + high) / 2
    layers = walk.graph_of(at(middle), shape).layers.values()
    if sum(layer.macs for layer in layers) < macs:
      low = middle
    else:
      high = middle
  return at(high)


def run_loop(compiled, state, source, steps):
  """The train state after some steps in the training loop."""
  state, _ = loop.train_steps(
    compiled,
    state,
    source,
    first_step=0,
    steps=steps,
    epoch=0,
    on_steps=lambda done, metrics: None,
    stop=stopping.StopSignal(),
  )
  return jax.block_until_ready(state)


def ours(contender, images, labels, *, steps, at_once=64, dtype='float32'):
  """() -> seconds of one step, the mean over `steps`."""
  source: Any = OneBatch(images, labels, at_once)
  compiled = loop.CompiledStage(
    contender.net, contender.stage, source, dtype=dtype, first_step=0
  )
  state = begin(contender, images.shape[1:])

  def train(steps):
    nonlocal state
    state = run_loop(compiled, state, source, steps)

  def run():
    train(1)
    started = time.perf_counter()
    train(steps)
    return (time.perf_counter() - started) / steps

  return run


def pytorch(
  contender, images, labels, *, steps, compiled=False, dtype='float32'
):
  """The same in PyTorch, eager or compiled; not for masked contenders.

  Raises:
    AssertionError: the losses on the batch differ by more than rounding, so it
      is not the same function.
  """
  import torch  # pyright: ignore[reportMissingImports]
  from torch.nn import functional  # pyright: ignore[reportMissingImports]

  net, stage, keep = contender
  assert not keep, 'there is no masked contender in PyTorch'
  device = 'cuda' if torch.cuda.is_available() else 'cpu'
  torch.backends.cuda.matmul.allow_tf32 = True  # as XLA does by default
  torch.backends.cudnn.benchmark = True
  params, batch_stats = initial(net, images.shape[1:])
  module, gates, trained = _torch_module(
    contender, images.shape[1:], params, batch_stats, device
  )
  x = torch.tensor(images, device=device).permute(0, 3, 1, 2)
  y = torch.tensor(labels, device=device).long()
  (group, *_) = stage.train.values()
  sgd = torch.optim.SGD(
    trained, group.lr.base, group.momentum, weight_decay=group.weight_decay
  )
  forward = torch.compile(module) if compiled else module

  def one():
    sgd.zero_grad(set_to_none=True)
    with torch.autocast(device, torch.bfloat16, enabled=dtype == 'bfloat16'):
      loss = functional.cross_entropy(forward(x), y)
    total = loss
    if gates:
      total = loss + stage.penalty * torch.cat(gates).sigmoid().sum()
    total.backward()
    sgd.step()
    return loss.detach()

  _check(net, stage, params, batch_stats, images, labels, float(one()), dtype)

  def run():
    one()
    _wait(torch, device)
    started = time.perf_counter()
    for _ in range(steps):
      one()
    _wait(torch, device)
    return (time.perf_counter() - started) / steps

  return run


def _torch_module(contender, shape, params, batch_stats, device):
  """(the network in train mode, its gates, all that the stage trains)."""
  import torch  # pyright: ignore[reportMissingImports]
  import torch_networks

  searches = contender.stage.delta_end is not None
  module = torch_networks.build(contender.net, shape, gated=searches)
  torch_networks.load(module, {'params': params, 'batch_stats': batch_stats})
  module = module.to(device, memory_format=torch.channels_last).train()
  gates, trained = [], []
  for name, parameter in module.named_parameters():
    if name.endswith('gate'):
      gates.append(parameter)
    if not searches or name.endswith('gate') or name.startswith('head.'):
      trained.append(parameter)
    else:
      parameter.requires_grad_(False)
  if searches:
    count = sum(gate.numel() for gate in gates)
    graph = walk.graph_of(contender.net, shape)
    assert count == sum(map(len, graph.gates.values())), 'the gates differ'
  return module, gates, trained


def _wait(torch, device):
  if device == 'cuda':
    torch.cuda.synchronize()


def _check(net, stage, params, batch_stats, images, labels, torch_loss, dtype):
  """Compares PyTorch's loss of the first step with ours."""
  import torch_networks

  gates = walk.graph_of(net, images.shape[1:]).shapes.get('gates', {})
  gate_logits = jax.tree.map(lambda a: jnp.zeros(a.shape, a.dtype), gates)
  values = (
    channel_gates.soft_gates(gate_logits, torch_networks.DELTA)
    if stage.delta_end is not None
    else channel_gates.open_gates(gate_logits)
  )
  variables = {'params': params, 'batch_stats': batch_stats, 'gates': values}

  def loss(variables, images, labels):
    logits, _ = net.apply(
      variables, images, train=True, mutable=['batch_stats']
    )
    return losses.cross_entropy(logits, labels).mean()

  expected = float(jax.jit(loss)(variables, images, labels))
  tolerance = 5e-2 if dtype == 'bfloat16' else 5e-3
  difference = abs(torch_loss - expected)
  assert difference < tolerance * max(1.0, expected), (torch_loss, expected)
