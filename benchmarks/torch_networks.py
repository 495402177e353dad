"""The CNNs of the paper in PyTorch, for comparison with ours.

Builds the full, the gated and the pruned form. Widths come from the graph of
our network, the rest is written out. `load` copies our weights, so a benchmark
can check that both are the same function before it compares their speed.
"""

import numpy as np
import torch  # pyright: ignore[reportMissingImports]
from torch import nn  # pyright: ignore[reportMissingImports]
from torch.nn import functional  # pyright: ignore[reportMissingImports]

from dnal_jax import trees
from dnal_jax.graph import walk
from dnal_jax.models import mobilenet_v2, resnet, vgg
from dnal_jax.nn import scaled

DELTA = 2.5  # of the gates; constant within an epoch


def build(net, image_shape, *, gated=False):
  """The PyTorch form of a full or pruned network, with or without gates."""
  families = {
    vgg.Vgg: Vgg,
    resnet.ResNet: ResNet,
    mobilenet_v2.MobileNetV2: MobileNetV2,
  }
  specs = walk.graph_of(net, image_shape).layers
  return families[type(net)](net, Layers(specs, gated))


def load(module, variables):
  """Copies our `params` and `batch_stats` into a module made by `build`.

  Raises:
    RuntimeError: they are variables of another network.
  """
  names = {'kernel': 'weight', 'scale': 'weight', 'bias': 'bias'}
  names |= {'mean': 'running_mean', 'var': 'running_var'}
  state = {
    k: v
    for k, v in module.state_dict().items()
    if k.endswith(('gate', 'num_batches_tracked'))
  }
  for path, value in trees.flatten(variables).items():
    _, *parents, leaf = path.split('/')
    array = np.array(value)
    if leaf == 'kernel':
      array = array.transpose((3, 2, 0, 1) if array.ndim == 4 else (1, 0))
    state['.'.join((*parents, names[leaf]))] = torch.tensor(array)
  module.load_state_dict(state)


class Layers:
  """Makes the layers of a network by their path in our network."""

  def __init__(self, specs, gated):
    self.specs, self.gated = specs, gated

  def conv(self, path, stride=1, gate=True):
    """The layer, or None if it was pruned away. `gate` is False for expansions,
    whose width is decided by the gate of the depthwise layer."""
    spec = self.specs.get(path)
    if spec is None or not spec.out_ids:
      return None
    assert spec.in_ids is None or spec.in_ids, f'{path} reads nothing'
    gated = self.gated and gate and spec.out_gate is not None
    return ConvBn(spec, stride, gated)

  def head(self):
    paths = [path for path in self.specs if path.startswith('head/')]
    return Head([self.specs[path] for path in paths])


class ConvBn(nn.Conv2d):
  """Convolution, BatchNorm and, if `gated`, a gate."""

  def __init__(self, spec, stride, gated):
    n = len(spec.out_ids)
    depthwise = spec.in_ids is None
    super().__init__(
      *(n if depthwise else len(spec.in_ids), n, spec.kernel, stride),
      padding=spec.kernel // 2,
      groups=n if depthwise else 1,
      bias=spec.bias,
    )
    self.ids = spec.out_ids
    self.bn = nn.BatchNorm2d(n)
    self.gate = nn.Parameter(torch.zeros(n)) if gated else None
    # Random initialisation of 1,000 layers takes longer than the timed steps.
    nn.init.constant_(self.weight, 0.01)

  def forward(self, input):
    x = self.bn(super().forward(input))
    if self.gate is None:
      return x
    return x * torch.sigmoid(DELTA * self.gate).view(1, -1, 1, 1)


class Head(nn.Module):
  """Hidden linear layers with BatchNorm and ReLU, then the logits."""

  def __init__(self, specs):
    super().__init__()
    self.hidden = len(specs) - 1
    for i, spec in enumerate(specs[:-1], 1):
      self.add_module(f'fc{i}', nn.Linear(len(spec.in_ids), len(spec.out_ids)))
      self.add_module(f'bn{i}', nn.BatchNorm1d(len(spec.out_ids)))
    self.logits = nn.Linear(len(specs[-1].in_ids), len(specs[-1].out_ids))

  def forward(self, x):
    for i in range(1, self.hidden + 1):
      x = getattr(self, f'fc{i}')(x)
      x = functional.relu(getattr(self, f'bn{i}')(x))
    return self.logits(x)


class Add(nn.Module):
  """The sum of two feature maps, each zero in the channels that it lacks."""

  def __init__(self, ids, other):
    super().__init__()
    self.ids = tuple(sorted({*ids, *other}))
    for name, have in (('first', ids), ('second', other)):
      column = {c: i for i, c in enumerate(have)}
      index = [column.get(c, len(have)) for c in self.ids]
      index = None if have == self.ids else torch.tensor(index)
      self.register_buffer(name, index, persistent=False)

  def forward(self, x, y):
    return _select(x, self.first) + _select(y, self.second)


def _select(x, index):
  if index is None:
    return x
  return functional.pad(x, (0, 0, 0, 0, 0, 1)).index_select(1, index)


class Vgg(nn.Module):
  def __init__(self, net, layers):
    super().__init__()
    self.stages = [len(stage) for stage in net.stages]
    for i, count in enumerate(self.stages, 1):
      for j in range(1, count + 1):
        self.add_module(f'conv{i}_{j}', layers.conv(f'conv{i}_{j}'))
    self.head = layers.head()

  def forward(self, x):
    for i, count in enumerate(self.stages, 1):
      for j in range(1, count + 1):
        x = functional.relu(getattr(self, f'conv{i}_{j}')(x))
      x = functional.max_pool2d(x, 2)
    return self.head(x.permute(0, 2, 3, 1).flatten(1))


class Block(nn.Module):
  """A basic or bottleneck block; a pruned branch leaves the shortcut alone."""

  def __init__(self, layers, path, names, strides, ids, shift=0):
    super().__init__()
    self.names = names
    for name, stride in zip(names, strides, strict=True):
      self.add_module(name, layers.conv(f'{path}/{name}', stride))
    self.stride = max(strides)
    self.downsample = layers.conv(f'{path}/downsample', self.stride)
    if self.downsample is not None:
      ids = self.downsample.ids
    ids = tuple(c + shift for c in ids)
    last = getattr(self, names[-1])
    self.add = None if last is None else Add(last.ids, ids)
    self.ids = ids if self.add is None else self.add.ids

  def forward(self, x):
    y = x
    if self.add is not None:
      for name in self.names[:-1]:
        y = functional.relu(getattr(self, name)(y))
      y = getattr(self, self.names[-1])(y)
    if self.downsample is not None:
      x = self.downsample(x)
    elif self.stride > 1:
      x = x[:, :, :: self.stride, :: self.stride]
    return functional.relu(x if self.add is None else self.add(y, x))


class ResNet(nn.Module):
  def __init__(self, net, layers):
    super().__init__()
    basic = net.block is resnet.BasicBlock
    names = ('conv1', 'conv2') if basic else ('conv1', 'conv2', 'conv3')
    self.pool = net.stem_pool
    self.stem_conv = layers.conv('stem_conv', net.stem_layer[2])
    ids = self.stem_conv.ids
    inputs = scaled(net.stem_layer[0], net.width)
    blocks = []
    for i, (count, features) in enumerate(
      zip(net.blocks, net.features, strict=True), 1
    ):
      features = scaled(features, net.width)
      for j in range(1, count + 1):
        stride = 2 if i > 1 and j == 1 else 1
        strides = (stride, 1) if basic else (1, stride, 1)
        shift = (features - inputs) // 2 if basic else 0
        path = f'block{i}_{j}'
        block = Block(layers, path, names, strides, ids, shift)
        self.add_module(path, block)
        blocks.append(path)
        ids, inputs = block.ids, features
    self.blocks = blocks
    self.head = layers.head()

  def forward(self, x):
    x = functional.relu(self.stem_conv(x))
    if self.pool:
      x = functional.max_pool2d(x, 3, 2, 1)
    for block in self.blocks:
      x = getattr(self, block)(x)
    return self.head(x.mean((2, 3)))


class InvertedResidual(nn.Module):
  def __init__(self, layers, path, stride, ids, identity):
    super().__init__()
    self.expand = layers.conv(f'{path}/expand', gate=False)
    self.depthwise = layers.conv(f'{path}/depthwise', stride)
    self.project = layers.conv(f'{path}/project')
    self.shortcut = layers.conv(f'{path}/shortcut')
    self.ids = self.project.ids if self.project is not None else ids
    self.add = None
    if self.shortcut is not None:
      ids = self.shortcut.ids
    if self.project is not None and (identity or self.shortcut is not None):
      self.add = Add(self.project.ids, ids)
      self.ids = self.add.ids

  def forward(self, x):
    if self.project is None:
      return x if self.shortcut is None else self.shortcut(x)
    y = x if self.expand is None else functional.relu6(self.expand(x))
    y = self.project(functional.relu6(self.depthwise(y)))
    if self.add is None:
      return y
    return self.add(y, x if self.shortcut is None else self.shortcut(x))


class MobileNetV2(nn.Module):
  def __init__(self, net, layers):
    super().__init__()
    self.stem_conv = layers.conv('stem_conv', net.stem_stride, gate=False)
    ids, inputs = self.stem_conv.ids, scaled(net.stem_channels, net.width)
    blocks = []
    for i, (_, features, count, stride) in enumerate(net.stages, 1):
      features = scaled(features, net.width)
      for j in range(1, count + 1):
        first = stride if j == 1 else 1
        path = f'block{i}_{j}'
        identity = first == 1 and inputs == features
        block = InvertedResidual(layers, path, first, ids, identity)
        self.add_module(path, block)
        blocks.append(path)
        ids, inputs = block.ids, features
    self.blocks = blocks
    self.last_conv = layers.conv('last_conv')
    self.head = layers.head()

  def forward(self, x):
    x = functional.relu6(self.stem_conv(x))
    for block in self.blocks:
      x = getattr(self, block)(x)
    x = functional.relu6(self.last_conv(x))
    return self.head(x.mean((2, 3)))
