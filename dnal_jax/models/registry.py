"""Every network by name: ours, and those that a user registers."""

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
      f'unknown network {name!r}{errors.did_you_mean(name, known)}. One of your'
      f' own is known after models.register({name!r}, ...)'
    )
  return known[name]


def register(name: str, variant: Variant) -> None:
  """Makes a network of one's own known by name to configs, `load` and all
  else, in this process.

  A name that was registered before is replaced, as when a notebook's cell is
  run again.

  Raises:
    UserError: the name is one of ours, or the network is not as a run needs
      it; what is wrong in a network's own code raises from there.
  """
  if name in NETWORKS:
    raise errors.UserError(
      f"'{name}' is a network of ours; register yours under another name"
    )
  if len(name) > limits.NAME:  # else no file with it would be read
    raise errors.UserError(
      f"'{name}' is too long a name; make it {limits.NAME} characters at most"
    )
  told = _unfit(variant)
  if told:
    raise errors.UserError(f"network '{name}' {told}")
  _REGISTERED[name] = variant


def _unfit(variant: Variant) -> str | None:
  """What keeps a run from training, cutting and counting the network."""
  fields = {'classes': variant.classes, 'width': 1.0, 'keep': nn.NO_KEEP}
  try:
    net = variant.build(**fields)
  except TypeError as error:
    told = f'cannot be built with {", ".join(fields)} ({error})'
    return f'{told}: make them fields of its class'
  try:
    hash(net)  # as jit wants it
  except TypeError:
    return 'has a field that cannot be hashed: use tuples, not lists or arrays'
  if not hasattr(net, 'min_image'):
    return 'has no min_image: add it, the smallest image side in pixels'
  image_shape = (variant.image, variant.image, 3)
  graph = walk.graph_of(net, image_shape)
  if 'head/logits' not in graph.sites:
    return "has no classifier: end it with nn.Head(..., name='head')"
  if not graph.gates:
    return 'has no nn.Gate, so there is nothing to search'
  for path in trees.flatten(graph.shapes['params']):
    owner = path.rpartition('/')[0].removesuffix('/bn')
    if owner not in graph.sites and not owner.startswith('head/'):
      return (
        f"has the parameter '{path}', which can be neither cut nor counted: use"
        ' nn.ConvBn and nn.Head for all that is trained'
      )
  last = {gate: ids[-1:] for gate, ids in graph.gates.items()}
  thin = walk.graph_of(surgery.with_keep(net, last), image_shape)
  for gate, ids in last.items():
    if thin.gates.get(gate) != ids:
      return (
        f"does not cut gate '{gate}': make its width with nn.gated or"
        ' nn.chain, and hand keep=self.keep to the modules inside'
      )
  return None
