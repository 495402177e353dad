"""Cuts a network to its open channels, and counts what any network costs.

Both come from one walk: running a network's definition on shapes alone tells
for each layer the channel ids it reads and writes. Two counts are kept apart:
`exact`, of the network handed over, and `reference`, the arithmetic behind the
paper's tables, which follows gates and not data flow (Deviation of theirs: it
ignores that a shortcut may keep alive what a gate has closed).
"""

from collections.abc import Mapping
import dataclasses
import math
import re
from typing import Any

from flax import linen as nn
from flax.core import FrozenDict
import jax
import jax.numpy as jnp
import numpy as np

from dnal_jax import errors, layers, trees

Variables = Mapping[str, Any]

# Of a network that is walked over, 16 GiB in float32: nothing as large as that
# is trained here, and shapes beyond some of JAX's own limits may not be traced.
MOST_PARAMS = 2**32

# The authors' script forgets the BatchNorm of ResNet50's shortcut
# convolutions, and only those: with them its 25.55 M would be 25.56 M.
_NORM_UNCOUNTED = re.compile(r'.*/downsample')


@dataclasses.dataclass(frozen=True)
class Site:
  """What one convolution or linear layer reads and writes."""

  ins: layers.Ids | None  # None: depthwise, an output reads its own channel
  outs: layers.Ids
  in_gates: tuple[str, ...]
  out_gate: str | None
  kernel: int
  positions: int  # output pixels of one image
  bias: bool
  norm: bool
  closed: tuple[str, ...]  # gates that keep the image from reaching the input

  @property
  def macs(self) -> int:
    """Multiply-adds of one image."""
    fan_in = 1 if self.ins is None else len(self.ins)
    return self.kernel**2 * fan_in * self.positions * len(self.outs)


@dataclasses.dataclass(frozen=True)
class Counts:
  """Cost of a network: trained parameters (no gates), multiply-adds an image.

  `reference_*` are the paper's: see `reference_counts`.
  """

  params: int
  macs: int
  reference_params: int
  reference_macs: int


@dataclasses.dataclass(frozen=True)
class Walk:
  """All that a network's definition says about one of its forms."""

  sites: dict[str, Site]  # by path, in order of execution
  gates: dict[str, layers.Ids]  # channels behind each gate that has any
  shapes: dict[str, Any]  # variables, as jax.ShapeDtypeStruct

  @property
  def cut_off_by(self) -> tuple[str, ...]:
    """Gates that together keep the image from the classifier; () if none."""
    return self.sites['head/logits'].closed


def walk(net: Any, image_shape: tuple[int, int, int]) -> Walk:
  """Runs `net` on shapes alone; `image_shape` is (height, width, channels).

  Raises:
    UserError: it has more parameters than MOST_PARAMS.
  """
  found, weights = Walk({}, {}, {}), 0

  def record(call, args, kwargs, context):
    nonlocal weights
    if context.method_name != '__call__':
      return call(*args, **kwargs)
    layer, path = context.module, '/'.join(context.module.path)
    weights += _weights(layer, args)
    if weights > MOST_PARAMS:
      raise errors.UserError(
        f"with layer '{path}' the network has {weights:,} parameters, and"
        f' {MOST_PARAMS:,} is the most; make it narrower, or its images smaller'
      )
    out = call(*args, **kwargs)
    if isinstance(layer, layers.ConvBn | layers.Dense):
      found.sites[path] = _site(layer, args[0], out)
    elif isinstance(layer, layers.Gate) and out.ids:
      found.gates[path] = out.ids
    return out

  image = jax.ShapeDtypeStruct((1, *image_shape), jnp.float32)
  with nn.intercept_methods(record):
    found.shapes.update(jax.eval_shape(net.init, jax.random.key(0), image))
  return found


def with_keep(net: Any, keep: layers.Keep) -> Any:
  """The same network with the channels `keep` only; {} is the full one."""
  return net.clone(keep=FrozenDict(keep))  # hashable, as jit wants it


def cut(variables: Variables, before: Walk, after: Walk) -> dict[str, Any]:
  """Restricts the variables of one form to the channels of a smaller one.

  Guarantee: the smaller network with the result is the function of the larger
  one with every other gate at zero. Takes any of the collections; returns
  numpy arrays (slicing on the device would compile once per shape).
  """
  want = trees.flatten(
    {k: v for k, v in after.shapes.items() if k in variables}
  )
  flat = {}
  for path, value in trees.flatten(jax.device_get(dict(variables))).items():
    if path not in want:  # its layer has vanished, or reads nothing any more
      continue
    layer = path.split('/', 1)[1].rpartition('/')[0]
    owner = layer.removesuffix('/bn')
    if path.startswith('gates/'):
      value = _take(value, before.gates[layer], after.gates[layer], axis=-1)
    elif owner in after.sites:
      old, new = before.sites[owner], after.sites[owner]
      if (
        path.endswith('/kernel') and old.ins is not None and new.ins is not None
      ):
        value = _take(value, old.ins, new.ins, axis=-2)
      value = _take(value, old.outs, new.outs, axis=-1)
    flat[path] = value
  wrong = [k for k in want if k not in flat or flat[k].shape != want[k].shape]
  if wrong:
    raise ValueError(f'cutting gave no or wrong arrays for {wrong}')
  return trees.unflatten(flat)


def count(net: Any, image_shape: tuple[int, int, int]) -> Counts:
  """Both counts of a full or compact network, as integers."""
  this, whole = (walk(n, image_shape) for n in (net, with_keep(net, {})))
  return Counts(
    sum(math.prod(a.shape) for a in jax.tree.leaves(this.shapes['params'])),
    sum(site.macs for site in this.sites.values()),
    *reference_counts(whole, net.keep),
  )


def reference_counts(whole: Walk, keep: layers.Keep) -> tuple[int, int]:
  """(params, operations) as the authors' script counts them, from the walk
  over the full network and the channels kept.

  A gated layer counts only its gate's open channels as outputs; its inputs are
  those of the gate that wrote last (of a residual sum, the branch's; of a sum
  of candidates, ours: those that any of their gates has open). Layers
  without a gate count whole, except the classifier's inputs. BatchNorm adds
  two parameters and, like a bias, one operation per output channel (not per
  pixel); BatchNorms of linear layers are left out.
  """
  params = operations = 0
  for path, site in whole.sites.items():
    masked = site.out_gate is not None or path.startswith('head/')
    n_in = 1 if site.ins is None else len(site.ins)
    n_out = len(site.outs)
    if masked and site.ins is not None and site.in_gates:
      have, left = (
        len(set().union(*(ids[gate] for gate in site.in_gates)))
        for ids in (whole.gates, {**whole.gates, **keep})
      )
      n_in = n_in * left // have
    if site.out_gate is not None:
      n_out = len(keep.get(site.out_gate, whole.gates[site.out_gate]))
    weights = site.kernel**2 * n_in * n_out
    norm = site.norm and not _NORM_UNCOUNTED.fullmatch(path)
    params += weights + n_out * (2 * norm + site.bias)
    operations += weights * site.positions + n_out * (norm + site.bias)
  return params, operations


def first_difference(
  net: nn.Module,
  variables: Variables,
  small: nn.Module,
  small_variables: Variables,
  images: jax.Array,
  tolerance: float,
) -> str | None:
  """Path of the first gate whose kept channels differ between two networks."""
  outputs = [
    _gate_outputs(n, v, images)
    for n, v in ((net, variables), (small, small_variables))
  ]
  for path, (ids, x) in outputs[1].items():
    full_ids, full_x = outputs[0][path]
    full_x = _take(full_x, full_ids, ids, axis=-1)
    if not np.allclose(full_x, x, rtol=tolerance, atol=tolerance):
      return path
  return None


def _gate_outputs(net, variables, images):
  found = {}

  def record(call, args, kwargs, context):
    out = call(*args, **kwargs)
    gate = context.module
    if isinstance(gate, layers.Gate) and out.ids:
      found['/'.join(gate.path)] = out.ids, np.asarray(out.x)
    return out

  with nn.intercept_methods(record):
    net.apply(variables, images)
  return found


def _weights(layer: nn.Module, args: tuple[Any, ...]) -> int:
  """Size of the kernel of a layer of ours, before it is made."""
  if isinstance(layer, layers.Dense):
    return len(args[0].ids) * layer.features
  if isinstance(layer, layers.ConvBn):
    fan_in = 1 if layer.depthwise else len(args[0].ids)
    return layer.kernel**2 * fan_in * len(layer.width.ids)
  return 0


def _site(layer, m: layers.Features, out: layers.Features) -> Site:
  is_conv = isinstance(layer, layers.ConvBn)
  return Site(
    ins=None if is_conv and layer.depthwise else m.ids,
    outs=out.ids,
    in_gates=m.gates,
    out_gate=next(iter(out.gates), None),
    kernel=layer.kernel if is_conv else 1,
    positions=out.x.shape[1] * out.x.shape[2] if is_conv else 1,
    bias=layer.bias if is_conv else True,
    norm=is_conv,
    closed=m.closed,
  )


def _take(x, have: layers.Ids, want: layers.Ids, *, axis: int):
  column = {c: i for i, c in enumerate(have)}
  return x.take(np.array([column[c] for c in want], int), axis=axis)
