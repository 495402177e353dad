"""Who may import whom; an import against the arrow is a design error."""

import ast
import pathlib
import sys

import pytest

ROOT = pathlib.Path(__file__).parent.parent
PACKAGE = ROOT / 'dnal_jax'

# From the top down; a room may import those that its row names, all of which
# stand below it. `errors`, `limits`, `paths` and `trees` are for everyone.
ROOMS = {
  'compare': {
    *('commands', 'train', 'workdir', 'config', 'training', 'search'),
    *('models', 'graph', 'data', 'parallel'),
  },
  'commands': {
    *('train', 'tpu', 'workdir', 'config', 'cost', 'graph', 'models'),
    *('data', 'parallel'),
  },
  'train': {
    *('workdir', 'config', 'training', 'search', 'data', 'parallel'),
  },
  'tpu': {'config', 'training', 'graph', 'data', 'parallel'},
  'workdir': {
    *('config', 'training', 'cost', 'models', 'graph', 'nn', 'data'),
    'parallel',
  },
  'config': {'training', 'models', 'graph', 'data', 'parallel'},
  'training': {'search', 'models', 'graph', 'nn', 'data', 'parallel'},
  'search': {'cost', 'graph', 'nn'},
  'cost': {'graph', 'nn'},
  'models': {'graph', 'nn'},
  'graph': {'nn'},
  'nn': {'ops'},
  'data': {'parallel'},
  'ops': {'parallel'},
  'parallel': set(),
  'recipes': set(),
}
EVERYONE = {'errors', 'limits', 'paths', 'trees'}
# Modules that are a room of their own, or belong to `commands`.
FLAT = {
  **dict.fromkeys(
    (
      *('__main__', 'cli', 'main', 'summary', 'status', 'dryrun', 'prepare'),
      'predict',
    ),
    'commands',
  ),
  '__init__': 'commands',
  'train': 'train',
  'resources': 'train',
  'beginning': 'train',
  'errors': 'errors',
  'limits': 'limits',
  'paths': 'paths',
  'trees': 'trees',
}
# Inside a room: what each module may import of it. A module that is not named
# imports none; `__init__` may import all, as it is what the room shows.
INSIDE = {
  'compare': {
    '__main__': {'cells', 'chart', 'estimate', 'methods', 'table'},
    'cells': {'methods'},
    'chart': {'cells', 'methods', 'table'},
    'estimate': {'cells', 'methods'},
    'table': {'cells', 'methods'},
  },
  'commands': {m: {'cli'} for m in FLAT if FLAT[m] == 'commands'},
  'train': {
    'train': {'beginning', 'resources'},
    'beginning': {'resources'},
  },
  'tpu': {'aot': {'hlo', 'topologies'}, 'topologies': {'environment'}},
  'workdir': {
    'architecture': {'checksums', 'json_files'},
    'checkpoint': {'disk_errors', 'run_state'},
    'data_file': {'json_files'},
    'layout': {'json_files'},
    'lock': {'json_files', 'layout'},
    'metrics_file': {'json_files'},
    'result_file': {'checksums', 'json_files', 'run_state'},
    'saved_model': {'architecture', 'json_files', 'weights'},
    'status_file': {'json_files', 'lock'},
    'weights': {'checksums', 'json_files'},
    'parent': {'data_file', 'json_files', 'saved_model'},
    'writer': {
      *('architecture', 'checksums', 'data_file', 'json_files', 'layout'),
      *(
        'lock',
        'metrics_file',
        'parent',
        'status_file',
        'tensorboard',
        'weights',
      ),
    },
  },
  'training': {
    'evaluate': {'step'},
    'hooks': {'stages'},
    'loop': {'stages', 'step', 'train_state'},
    'metrics': {'stages'},
    'optimizer': {'schedule'},
    'profiler': {'hooks', 'stages'},
    'progress_bar': {'hooks', 'metrics', 'stages'},
    'advice': {'stages'},
    'importance': {'losses'},
    'prune': {'advice', 'evaluate', 'stages'},
    'stages': {'optimizer'},
    'step': {'losses', 'optimizer', 'stages', 'train_state'},
    'train_state': {'optimizer', 'stages'},
  },
  'config': {'earlier': {'keys'}, 'run_config': {'keys'}},
  'recipes': {'imagenet': {'recipe'}, 'small_images': {'recipe'}},
  'search': {'ranking': {'budget'}},
  'cost': {'cost': {'live'}, 'exact': {'reference'}},
  'models': {
    'proxyless': {'mobilenet_v2'},
    'registry': {'network', 'zoo'},
    'zoo': {'mobilenet_v2', 'network', 'proxyless', 'resnet', 'vgg'},
  },
  'graph': {'difference': {'surgery', 'walk'}, 'surgery': {'walk'}},
  'nn': {'layers': {'activations', 'features'}},
  'data': {
    'crops': {'exif'},
    'folder': {'contents'},
    'batches': {'preprocessing'},
    'image_files': {'exif', 'folder'},
    'memory': {
      *('cache', 'contents', 'preprocessing', 'record_files', 'splits'),
      'tfds_sets',
    },
    'record_files': {'cache', 'contents', 'crops', 'tfds_sets'},
    'records': {
      *('contents', 'crops', 'folder', 'record_files', 'splits', 'tfds_sets'),
    },
    'pipeline': {'crops', 'records'},
    'resident': {'batches', 'contents', 'memory'},
    'sources': {
      *('batches', 'contents', 'folder', 'resident', 'splits', 'streamed'),
    },
    'splits': {'folder'},
    'streamed': {'batches', 'contents', 'pipeline', 'records', 'splits'},
    'tfds_sets': {'crops'},
  },
  'ops': {
    'batch_norm': {'convolution'},
    'convolution': {'convolution_cpu', 'depthwise_cpu'},
    'convolution_cpu': {'depthwise_cpu'},
  },
  'parallel': {
    'processes': {'mesh', 'signals'},
    'stopping': {'mesh', 'signals'},
  },
}
# The compute core starts fast and runs where TensorFlow is not installed.
CORE = {'search', 'cost', 'models', 'graph', 'nn', 'ops'}
CORE_THIRD_PARTY = {'jax', 'flax', 'numpy'}
NO_OPTAX = {'data', 'parallel'}
TENSORFLOW = {'tensorflow', 'tensorflow_datasets', 'clu'}
MAY_USE_TENSORFLOW = {'data', 'workdir'}


def place(path):
  """(room, module) of a file."""
  first, *rest = path.relative_to(PACKAGE).with_suffix('').parts
  return (first, rest[0]) if rest else (FLAT.get(first, '?'), first)


def imports_of(path):
  """(dotted name, is it at module level) of everything a file imports."""
  tree = ast.parse(path.read_text())
  for node in ast.walk(tree):
    top = node in tree.body
    if isinstance(node, ast.Import):
      yield from ((alias.name, top) for alias in node.names)
    elif isinstance(node, ast.ImportFrom):
      assert node.level == 0, f'{path}: relative import'
      yield from ((f'{node.module}.{a.name}', top) for a in node.names)


SOURCES = sorted(PACKAGE.rglob('*.py'))
IDS = ['/'.join(place(path)) for path in SOURCES]


def imported_of_ours(path):
  """(room, module or None) of each import of this package."""
  for name, _ in imports_of(path):
    package, _, rest = name.partition('.')
    if package == 'dnal_jax' and rest:
      first, *others = rest.split('.')
      if (PACKAGE / first).is_dir():
        module = others[0] if others else None
        is_module = (PACKAGE / first / f'{module}.py').exists()
        yield first, module if is_module else '__init__'
      else:
        yield FLAT.get(first, '?'), first


@pytest.mark.parametrize('path', SOURCES, ids=IDS)
def test_imports_follow_the_tables(path):
  room, module = place(path)
  for other, name in imported_of_ours(path):
    if other in EVERYONE:
      continue
    if other != room:
      assert other in ROOMS[room], f'{room} may not import {other}'
    elif module != '__init__' and name != '__init__':
      allowed = INSIDE.get(room, {}).get(module, set())
      assert name in allowed, f'{room}/{module} may not import {name}'


def test_rooms_import_downwards_only():
  """And no module of a room reaches itself."""
  order = list(ROOMS)
  for room, others in ROOMS.items():
    assert all(order.index(room) < order.index(other) for other in others)
  for modules in INSIDE.values():
    for module in modules:
      seen, ahead = set(), {module}
      while ahead:
        ahead = set().union(*(modules.get(m, set()) for m in ahead)) - seen
        seen |= ahead
      assert module not in seen or module == 'cli'


def test_the_tables_name_what_there_is():
  places = {place(path) for path in SOURCES}
  flat = {m for m, room in FLAT.items()}
  assert {m for room, m in places if (PACKAGE / f'{m}.py').exists()} >= flat
  assert {room for room, _ in places} == {*ROOMS, *EVERYONE}
  assert len(list(PACKAGE.glob('*.py'))) == len(flat) <= 16
  for room, modules in INSIDE.items():
    named = {*modules, *(m for names in modules.values() for m in names)}
    assert {(room, m) for m in named} <= places


@pytest.mark.parametrize('path', SOURCES, ids=IDS)
def test_core_and_tensorflow(path):
  room, _ = place(path)
  for name, top in imports_of(path):
    package = name.partition('.')[0]
    if package == 'dnal_jax' or package in sys.stdlib_module_names:
      continue
    if room in CORE:
      assert package in CORE_THIRD_PARTY, f'{room} imports {package}'
    if room in NO_OPTAX:
      assert package != 'optax', f'{room} imports optax'
    if package in TENSORFLOW:
      lazily = room in MAY_USE_TENSORFLOW and not top
      assert lazily, f'{room} imports {package} eagerly'


def test_configs_and_recipes_import_nothing_that_takes_long():
  for path in (*ROOT.glob('configs/*.py'), *PACKAGE.glob('recipes/*.py')):
    allowed = (
      *('ml_collections.', 'dnal_jax.recipes.', 'collections.', 'typing.'),
      *('functools', 'math'),
    )
    for name, _ in imports_of(path):
      assert name.startswith(allowed), f'{path} imports {name}'
