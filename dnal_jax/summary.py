"""Shows the widths and the cost of a network, unpruned and pruned.

It needs neither data nor weights.

python -m dnal_jax.summary DIR    (the folder of a run)
python -m dnal_jax.summary --network=resnet50
python -m dnal_jax.summary --config=configs/vgg16_cifar10.py
python -m dnal_jax.summary --architecture=DIR/architecture.json --json
"""

from collections.abc import Sequence
import dataclasses
import json
import pathlib
from typing import Any

from absl import flags

from dnal_jax import cli, errors, models, paths
from dnal_jax.config import parse_config
from dnal_jax.cost import exact
from dnal_jax.graph import surgery, walk
from dnal_jax.models import proxyless
from dnal_jax.parallel import mesh
from dnal_jax.workdir import architecture

FLAGS = flags.FlagValues()
_CONFIG = cli.define_config(
  'Config file: configs/NAME.py, of which the unpruned network is shown; with a'
  ' run, needed if it registers the network of the run.',
  FLAGS,
)
_NETWORK = flags.DEFINE_string(
  'network', None, 'Name of a network, unpruned.', flag_values=FLAGS
)
_ARCHITECTURE = flags.DEFINE_string(
  'architecture',
  None,
  'Architecture that a search has found: DIR/architecture.json.',
  flag_values=FLAGS,
)
_JSON = flags.DEFINE_bool(
  'json', False, 'Print JSON rather than a table.', flag_values=FLAGS
)


def summarise(net: Any, image_shape: tuple[int, int, int]) -> dict[str, Any]:
  """Inputs, width (outputs) and multiply-adds of each layer, and the counts of
  the network: unpruned ('baseline') and pruned ('learned'). `image_shape` is
  (height, width, channels)."""
  full = surgery.with_keep(net, {})
  before, after = (walk.graph_of(n, image_shape) for n in (full, net))
  rows = []
  for path, spec in before.layers.items():
    now = after.layers[path]
    rows.append(
      {
        'layer': path,
        'gate': spec.out_gate,
        'inputs': _inputs(spec),
        'learned_inputs': _inputs(now),
        'width': len(spec.out_ids),
        'learned_width': len(now.out_ids),
        'macs': spec.macs,
        'learned_macs': now.macs,
      }
    )
  return {
    'image_shape': list(image_shape),
    'layers': rows,
    # For a supernet, the candidates that remain in each block.
    'blocks': proxyless.survivors(before.gates, after.gates),
    'gates': {
      'total': sum(map(len, before.gates.values())),
      'kept': sum(map(len, after.gates.values())),
    },
    'baseline': dataclasses.asdict(exact.of_graph(before, before, full.keep)),
    'learned': (
      dataclasses.asdict(exact.of_graph(after, before, net.keep))
      if net.keep
      else None
    ),
  }


def _inputs(spec: walk.LayerSpec) -> int:
  """How many channels the layer reads; a depthwise one those that it writes."""
  return len(spec.out_ids if spec.in_ids is None else spec.in_ids)


def table(summary: dict[str, Any]) -> str:
  """A summary as text."""
  learned = summary['learned']
  height, width, channels = summary['image_shape']
  title = f'images of {height}x{width}x{channels}'
  title += ', unpruned > pruned' * bool(learned)
  lines = [title, *_layer_lines(summary['layers'], pruned=bool(learned)), '']
  for block, names in summary['blocks'].items() if learned else ():
    lines.append(f'{block}: {", ".join(names) or "its shortcut alone"}')
  lines += [''] * bool(learned and summary['blocks'])
  for key, value in summary['baseline'].items():
    line = f'{key.replace("_", " "):44}{value:>16,}'
    lines.append(line + (f'{learned[key]:>16,}' if learned else ''))
  gates = summary['gates']
  line = f'{"gated channels":44}{gates["total"]:>16,}'
  return '\n'.join(
    [*lines, line + (f'{gates["kept"]:>16,}' if learned else '')]
  )


def _layer_lines(rows: list[dict[str, Any]], *, pruned: bool) -> list[str]:
  """A line for each layer, with the pruned network's numbers behind >."""
  cells = [('layer', 'inputs', 'width', 'macs')]
  for row in rows:
    numbers = []
    for key in ('inputs', 'width', 'macs'):
      after = f' > {row[f"learned_{key}"]:,}' if pruned else ''
      numbers.append(f'{row[key]:,}{after}')
    cells.append((row['layer'], *numbers))
  layer, *widths = (
    max(map(len, column)) for column in zip(*cells, strict=True)
  )
  return [
    row[0].ljust(layer)
    + ''.join(
      f'  {cell:>{width}}' for cell, width in zip(row[1:], widths, strict=True)
    )
    for row in cells
  ]


def _network(folder: str | None) -> tuple[Any, tuple[int, int, int]]:
  """The network that the argument and the flags name, and (height, width,
  channels) of its images."""
  config, file = cli.config_of(_CONFIG), _file(folder)
  if bool(_NETWORK.value) == bool(config or file):
    raise errors.UserError(
      'name one network: DIR, the folder of a run; or --network=NAME; or'
      ' --config=configs/NAME.py; or --architecture=DIR/architecture.json'
    )
  if _NETWORK.value:
    variant = models.get(_NETWORK.value)
    image_shape = (variant.image, variant.image, 3)
    return variant.build(classes=variant.classes), image_shape
  if file is not None:  # which says it all; a config registers its network
    return architecture.read(file)[:2]
  assert config is not None
  parsed = parse_config(config)
  return parsed.build(), parsed.image_shape


def _file(folder: str | None) -> pathlib.Path | None:
  """The architecture.json that the argument or the flag names."""
  if folder is None:
    given = _ARCHITECTURE.value
    return paths.local('--architecture', given) if given else None
  path = paths.local('DIR', folder) / 'architecture.json'
  if _ARCHITECTURE.value:
    raise errors.UserError('give DIR or --architecture, not both')
  if not path.exists():
    raise errors.UserError(
      f"'{folder}' has no architecture.json, which a run writes when it prunes"
      ' or finishes; for the unpruned network, give --config=FILE'
    )
  return path


def body(argv: Sequence[str]) -> None:
  cli.refuse_arguments(argv[1:])
  mesh.check_platforms()
  summary = summarise(*_network(argv[1] if argv[1:] else None))
  print(json.dumps(summary, indent=1) if _JSON.value else table(summary))


if __name__ == '__main__':
  cli.main(body, FLAGS)
