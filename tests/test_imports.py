"""Who may import whom; an import against the arrow is a design error."""

import ast
import pathlib
import sys

import pytest

ROOT = pathlib.Path(__file__).parent.parent
# What each module may import of ours, beside `errors` and `trees`.
MAY_IMPORT = {
  '__init__': {'folder'},
  'files': set(),
  'architecture': {'compact', 'files', 'layers', 'models'},
  'weights': {'compact', 'files'},
  'errors': set(),
  'trees': set(),
  'mesh': set(),
  'hosts': {'mesh'},
  'conv': {'conv_cpu', 'mesh', 'shifts'},
  'conv_cpu': {'shifts'},
  'shifts': set(),
  'norm': {'conv'},
  'layers': {'conv', 'norm'},
  'models': {'compact', 'layers', 'models'},
  'gating': {'layers'},
  'stages': {'gating'},
  'step': {'gating', 'stages'},
  'compact': {'layers'},
  'data': {'mesh', 'step'},
  'checkpoint': {'hosts', 'position'},
  'position': set(),
  'hlo': set(),
  'chips': set(),
  'rehearsal': {
    'chips',
    'compact',
    'data',
    'engine',
    'hlo',
    'mesh',
    'settings',
    'stages',
  },
  'engine': {'data', 'gating', 'hosts', 'mesh', 'stages', 'step'},
  'profile': set(),
  'pruning': {
    'compact',
    'evaluate',
    'gating',
    'layers',
    'mesh',
    'stages',
  },
  'evaluate': {'compact', 'data', 'mesh', 'step'},
  'folder': {'architecture', 'files', 'models', 'weights'},
  'lock': {'files', 'folder'},
  'progress': {'files', 'lock', 'settings'},
  'output': {
    'architecture',
    'compact',
    'files',
    'folder',
    'hosts',
    'layers',
    'lock',
    'position',
    'progress',
    'pruning',
    'report',
    'settings',
    'weights',
  },
  'report': {'compact', 'files', 'position', 'settings', 'stages'},
  'settings': {'compact', 'data', 'models', 'stages'},
  'train': {
    'checkpoint',
    'compact',
    'data',
    'engine',
    'evaluate',
    'folder',
    'gating',
    'hosts',
    'layers',
    'lock',
    'mesh',
    'output',
    'position',
    'profile',
    'progress',
    'pruning',
    'report',
    'settings',
    'stages',
    'step',
  },
  'cli': {'hosts'},
  'main': {'cli', 'data', 'hosts', 'report', 'settings', 'train'},
  'prepare': {'cli', 'data'},
  'dryrun': {
    'architecture',
    'chips',
    'cli',
    'mesh',
    'rehearsal',
    'settings',
  },
  'status': {'cli', 'files', 'lock', 'progress', 'report'},
  'summary': {'architecture', 'cli', 'compact', 'models', 'settings'},
}
# The compute core starts fast and runs where TensorFlow is not installed.
CORE = {
  'mesh',
  'conv',
  'conv_cpu',
  'shifts',
  'norm',
  'layers',
  'models',
  'gating',
  'stages',
  'step',
  'compact',
}
CORE_THIRD_PARTY = {'jax', 'flax', 'optax', 'numpy'}
TENSORFLOW = {'tensorflow', 'tensorflow_datasets', 'clu'}
MAY_USE_TENSORFLOW = {'data', 'report'}


def module_of(path):
  """'models/vgg.py' and 'models/__init__.py' are both the module 'models'."""
  parts = path.relative_to(ROOT / 'dnal_jax').with_suffix('').parts
  return parts[0]


def imports_of(path):
  """(name, is it at module level) of everything a file imports."""
  tree = ast.parse(path.read_text())
  for node in ast.walk(tree):
    top = node in tree.body
    if isinstance(node, ast.Import):
      yield from ((alias.name, top) for alias in node.names)
    elif isinstance(node, ast.ImportFrom):
      assert node.level == 0, f'{path}: relative import'
      if node.module == 'dnal_jax':
        yield from ((f'dnal_jax.{a.name}', top) for a in node.names)
      else:
        yield node.module, top


SOURCES = sorted((ROOT / 'dnal_jax').rglob('*.py'))


@pytest.mark.parametrize('path', SOURCES, ids=lambda p: p.stem)
def test_imports_follow_the_table(path):
  module = module_of(path)
  allowed = MAY_IMPORT[module] | {'errors', 'trees', module}
  for name, _ in imports_of(path):
    package, _, rest = name.partition('.')
    if package == 'dnal_jax':
      ours = rest.split('.')[0]
      assert ours in allowed, f'{module} may not import {ours}'


@pytest.mark.parametrize('path', SOURCES, ids=lambda p: p.stem)
def test_core_and_tensorflow(path):
  module = module_of(path)
  for name, top in imports_of(path):
    package = name.partition('.')[0]
    if package == 'dnal_jax' or package in sys.stdlib_module_names:
      continue
    if module in CORE:
      assert package in CORE_THIRD_PARTY, f'{module} imports {package}'
    if package in TENSORFLOW:
      lazily = module in MAY_USE_TENSORFLOW and not top
      assert lazily, f'{module} imports {package} eagerly'


def test_configs_import_configs_only():
  for path in (ROOT / 'configs').glob('*.py'):
    packages = {name.partition('.')[0] for name, _ in imports_of(path)}
    assert packages <= {'ml_collections', 'configs', 'collections', 'typing'}


def test_table_has_every_module():
  assert {module_of(path) for path in SOURCES} == set(MAY_IMPORT)
