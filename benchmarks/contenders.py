"""One train step of any stage, ours and PyTorch's, ready to be timed.

Ours runs in the loop that runs use (`loop.CompiledStage`), on one batch that
lies on the device. PyTorch gets its batch on the device, too, channels last,
and the same kind of optimizer.

Before it is timed, a contender does a step untimed. On CPU the first one after
another contender takes up to twice as long as those that follow (PyTorch's
threads are still spinning, memory comes from the system anew), which no
training sees.
"""

import dataclasses
from functools import partial
import itertools
import time
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

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


@dataclasses.dataclass(frozen=True)
class Masked(Stage):
  """Fine-tuning as in the authors' code: full size, closed gates are zeros."""

  keep: tuple = ()  # of (gate, open ids)

  def gates(self, gate_logits, epoch):
    del epoch
    closed = dict(self.keep)
    values = {
      path: np.isin(np.arange(len(g)), closed[path]).astype(np.float32)
      for path, g in channel_gates.by_path(gate_logits).items()
    }
    paths, tree = jax.tree.flatten(
      jax.tree_util.tree_map_with_path(
        lambda path, _: '/'.join(k.key for k in path[:-1]), gate_logits
      )
    )
    return jax.tree.unflatten(tree, [jnp.asarray(values[p]) for p in paths])


class OneBatch:
  """A `Source` (dnal_jax/data/sources.py) of one batch, again and again."""

  steps_per_epoch = 100

  def __init__(self, images, labels, steps_at_once):
    self.inputs = jax.device_put((images, labels))
    self.steps_at_once = steps_at_once

  def train_batch(self, inputs, step):
    del step
    images, labels = inputs
    return Batch(images, labels, jnp.ones(len(labels)))


def batch(size, shape, classes):
  """Noise and labels, the same for everyone."""
  rng = np.random.default_rng(0)
  images = rng.normal(size=(size, *shape)).astype(np.float32)
  return images, rng.integers(0, classes, size).astype(np.int32)


def initial(net, shape):
  """(params, batch_stats) of a network, full or cut."""
  variables = jax.jit(net.init)(jax.random.key(0), jnp.zeros((1, *shape)))
  return variables['params'], variables['batch_stats']


def begin(net, stage, shape):
  """The state at the start of a stage."""
  params, batch_stats = initial(net, shape)
  gates = walk.graph_of(net, shape).shapes.get('gates', {})
  gate_logits = jax.tree.map(lambda a: jnp.zeros(a.shape, a.dtype), gates)
  return jax.jit(partial(train_state.create_train_state, stage))(
    params, gate_logits, batch_stats
  )


def cut_to(net, shape, macs, *, multiple=1):
  """The network with random channels closed, a share of them everywhere, so
  that `macs` are left; widths are multiples of `multiple`."""
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


def ours(net, stage, images, labels, *, steps, at_once=64, dtype='float32'):
  """() -> seconds of one step, the mean over `steps`."""
  shape = images.shape[1:]
  source: Any = OneBatch(images, labels, at_once)
  compiled = loop.CompiledStage(net, stage, source, dtype=dtype, first_step=0)
  state = begin(net, stage, shape)

  def train(steps):
    nonlocal state
    state, _ = compiled.train(
      state,
      itertools.repeat(source.inputs),
      steps=steps,
      epoch=0,
      told=lambda done, metrics: None,
      stop=stopping.StopSignal(),
    )
    jax.block_until_ready(state)

  def run():
    train(1)
    started = time.perf_counter()
    train(steps)
    return (time.perf_counter() - started) / steps

  return run


def pytorch(
  net, stage, images, labels, *, steps, compiled=False, dtype='float32'
):
  """The same in PyTorch, eager or compiled. Makes sure first that it is the
  same function: the losses of both on the batch differ by rounding."""
  import torch  # pyright: ignore[reportMissingImports]
  from torch.nn import functional  # pyright: ignore[reportMissingImports]
  import torch_networks

  shape = images.shape[1:]
  device = 'cuda' if torch.cuda.is_available() else 'cpu'
  torch.backends.cuda.matmul.allow_tf32 = True  # as XLA does by default
  torch.backends.cudnn.benchmark = True
  searches = stage.delta_end is not None
  module = torch_networks.build(net, shape, gated=searches)
  params, batch_stats = initial(net, shape)
  torch_networks.load(module, {'params': params, 'batch_stats': batch_stats})
  module = module.to(device, memory_format=torch.channels_last).train()
  x = torch.tensor(images, device=device).permute(0, 3, 1, 2)
  y = torch.tensor(labels, device=device).long()
  gates, trained = [], []
  for name, parameter in module.named_parameters():
    if name.endswith('gate'):
      gates.append(parameter)
    if not searches or name.endswith('gate') or name.startswith('head.'):
      trained.append(parameter)
    else:
      parameter.requires_grad_(False)
  (group, *_) = stage.train.values()
  sgd = torch.optim.SGD(
    trained, group.lr.base, group.momentum, weight_decay=group.weight_decay
  )
  graph = walk.graph_of(net, shape)
  if searches:
    have = sum(gate.numel() for gate in gates)
    assert have == sum(map(len, graph.gates.values())), 'other gates than ours'
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


def _wait(torch, device):
  if device == 'cuda':
    torch.cuda.synchronize()


def _check(net, stage, params, batch_stats, images, labels, theirs, dtype):
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

  mine = float(jax.jit(loss)(variables, images, labels))
  tolerance = 5e-2 if dtype == 'bfloat16' else 5e-3
  assert abs(mine - theirs) < tolerance * max(1.0, abs(mine)), (mine, theirs)
