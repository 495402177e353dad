"""All networks by name: those of the zoo, and those that users register."""

from typing import Any

from dnal_jax import errors, limits, nn, trees
from dnal_jax.graph import surgery, walk
from dnal_jax.models.network import Variant
from dnal_jax.models.zoo import NETWORKS

_REGISTERED: dict[str, Variant] = {}  # by users


def get(name: str) -> Variant:
  """The variant of that name.

  Raises:
    UserError: no network has that name.
  """
  known = {**_REGISTERED, **NETWORKS}
  if name not in known:
    raise errors.UserError(
      f'unknown network {name!r}{errors.did_you_mean(name, known)}. To use a'
      f' network of your own, call models.register({name!r}, ...) first, or'
      ' give a command the --config=FILE that does'
    )
  return known[name]


def register(name: str, variant: Variant) -> None:
  """Makes a user's network available by name, in this process.

  Replaces a network that was registered by the same name, so that a notebook's
  cell can be run again. Errors in the network's own code propagate.

  Raises:
    UserError: the name belongs to the zoo or is too long, or the network cannot
      be trained, pruned and counted.
  """
  if name in NETWORKS:
    raise errors.UserError(
      f"'{name}' is a network of dnal_jax; register yours by another name"
    )
  if len(name) > limits.NAME:  # architecture.json would not be read
    raise errors.UserError(
      f"'{name}' is too long a name; {limits.NAME} characters is the maximum"
    )
  fault = _fault(variant)
  if fault:
    raise errors.UserError(f"network '{name}' {fault}")
  _REGISTERED[name] = variant


def _fault(variant: Variant) -> str | None:
  """What prevents the network from being used, and the fix; None if nothing."""
  fields = {'classes': variant.classes, 'width': 1.0, 'keep': nn.KEEP_ALL}
  try:
    net = variant.build(**fields)
  except TypeError as error:
    return (
      f'cannot be built with {", ".join(fields)} ({error}): make them fields of'
      ' its class'
    )
  fault = _fault_of_definition(net, (variant.image, variant.image, 3))
  return fault and f'({type(net).__name__}) {fault}'


def _fault_of_definition(
  net: Any, image_shape: tuple[int, int, int]
) -> str | None:
  try:
    hash(net)  # needed by `jit`
  except TypeError:
    return 'has a field that cannot be hashed: use tuples, not lists or arrays'
  if not hasattr(net, 'min_image'):
    return 'has no min_image: add it, the smallest image side in pixels'
  graph = walk.graph_of(net, image_shape)
  if 'head/logits' not in graph.layers:
    return "has no classifier: end it with nn.Head(..., name='head')"
  if not graph.gates:
    return 'has no gates to search: pass gate=nn.Gate(name=...) to nn.ConvBn'
  for path, layer in graph.layers.items():
    if layer.out_gate and layer.out_gate not in graph.gates:
      gate = layer.out_gate.rpartition('/')[2]
      return (
        f"has the layer '{path}', whose width has the gate '{layer.out_gate}',"
        f" but no layer applies it: pass gate=nn.Gate(name='{gate}')"
      )
  for path in trees.flatten(graph.shapes['params']):
    owner = path.rpartition('/')[0].removesuffix('/bn')
    if owner not in graph.layers and not owner.startswith('head/'):
      return (
        f"has the parameter '{path}', which can be neither pruned nor counted:"
        ' use nn.ConvBn and nn.Head for all that is trained'
      )
  return _fault_of_pruning(net, graph, image_shape)


def _fault_of_pruning(
  net: Any, graph: walk.Graph, image_shape: tuple[int, int, int]
) -> str | None:
  last = {gate: ids[-1:] for gate, ids in graph.gates.items()}
  thin = walk.graph_of(surgery.with_keep(net, last), image_shape)
  for gate, ids in last.items():
    if thin.gates.get(gate) != ids:
      return (
        f"does not prune gate '{gate}': make its width with nn.gated or"
        ' nn.chain, and pass keep=self.keep to the modules inside'
      )
  return None
