"""The notebooks run, and the outputs committed with them are of such a run."""

import json
import re
import shutil
import subprocess
import time
import tomllib

from commands import ROOT
import execute
import nbclient
import nbformat
import pytest


def read(path):
  return nbformat.read(path, as_version=4)


def code_cells(notebook):
  return [cell for cell in notebook.cells if cell.cell_type == 'code']


def printed(cell):
  return ''.join(
    out.text for out in cell.outputs if out.get('name') == 'stdout'
  )


def kinds(cell):
  """The types of a cell's outputs; warnings, which depend on the machine, are
  left out."""
  return [
    out.output_type for out in cell.outputs if out.get('name') != 'stderr'
  ]


def shape(text):
  """The text without numbers, bars and spaces, which differ between
  machines."""
  return re.sub(r'\d[\d.,e+-]*|[#.]{6,}|\s+', ' ', text).split()


# A cell that shortens the runs of a notebook, put behind the first.
SHORTENED = """
import dnal_jax.config

_read_config = dnal_jax.config.read_config


def _short_config(name):
  config = _read_config(name)
  for stage in config.stages.values():
    stage.epochs = 2
  return config


dnal_jax.config.read_config = _short_config
"""


def shortened(path, folder):
  """A copy of the notebook whose stages have two epochs each."""
  notebook = read(path)
  cell = nbformat.v4.new_code_cell(SHORTENED, id='shortened')
  setup = next(i for i, c in enumerate(notebook.cells) if c.id == 'setup')
  notebook.cells.insert(setup + 1, cell)
  copy = folder / path.name
  nbformat.write(notebook, copy)
  return copy


def execute_like_committed(name, folder, short):
  """What each cell printed, {id: text}: (committed, executed now).

  The outputs of both must be of the same kind, and their texts the same but
  for numbers.
  """
  path = ROOT / 'notebooks' / f'{name}.ipynb'
  started = time.monotonic()
  now = execute.execute(shortened(path, folder) if short else path, folder)
  assert time.monotonic() - started < 300
  committed = code_cells(read(path))
  executed = [cell for cell in code_cells(now) if cell.id != 'shortened']
  for old, new in zip(committed, executed, strict=True):
    assert kinds(old) == kinds(new), f'{new.id}: run `make notebooks`'
    assert shape(printed(old)) == shape(printed(new)), new.id
  return tuple(
    {cell.id: printed(cell) for cell in cells}
    for cells in (committed, executed)
  )


def result(folder, run):
  return json.loads((folder / 'runs' / run / 'result.json').read_text())


def test_there_are_notebooks():
  assert [path.stem for path in execute.PATHS] == [
    *('bring_your_own_network', 'quickstart')
  ]


@pytest.mark.parametrize('path', execute.PATHS, ids=lambda p: p.stem)
def test_committed_notebook_is_whole(path):
  """Executed from top to bottom, small, and nothing in it but results."""
  notebook = read(path)
  nbformat.validate(notebook)
  assert path.stat().st_size < 300_000
  assert notebook.metadata == {
    'kernelspec': {
      'display_name': 'Python 3',
      'language': 'python',
      'name': 'python3',
    },
    'language_info': {'name': 'python'},
  }
  cells = code_cells(notebook)
  counts = [cell.execution_count for cell in cells]
  assert counts == list(range(1, len(cells) + 1))
  for cell in cells:
    assert not cell.metadata, cell.id
    for out in cell.outputs:
      assert out.output_type in ('stream', 'display_data'), cell.id
      assert out.get('name') != 'stderr', cell.id


@pytest.mark.parametrize('path', execute.PATHS, ids=lambda p: p.stem)
def test_addresses(path):
  """The badge and the clone are of the project's one address."""
  project = tomllib.loads((ROOT / 'pyproject.toml').read_text())['project']
  address = project['urls']['Repository']
  source = '\n'.join(cell.source for cell in read(path).cells)
  assert f'!git clone -q --depth 1 {address}\n' in source
  place = address.removeprefix('https://github.com/')
  notebook = f'github/{place}/blob/main/notebooks/{path.name}'
  assert f'https://colab.research.google.com/{notebook})' in source
  assert set(re.findall(r'https://github\.com/[^\s)#]+', source)) == {address}


@pytest.mark.long
def test_quickstart(tmp_path):
  """Figures that are printed are those of the runs' results."""
  committed, now = execute_like_committed('quickstart', tmp_path, short=False)
  got, smaller = result(tmp_path, 'quickstart'), result(tmp_path, 'smaller')
  limits = [of_run['target']['macs']['limit'] for of_run in (got, smaller)]
  assert limits == [
    got['baseline']['macs'] // 10,
    got['baseline']['macs'] * 3 // 100,
  ]
  assert now['classify'].startswith(f'{got["test_top1"]:.2%} of 360')
  macs = [
    got['baseline']['macs'],
    *(of_run['learned']['macs'] for of_run in (got, smaller)),
  ]
  assert [
    int(n.replace(',', '')) for n in re.findall(r'(\S+) macs', now['plot'])
  ] == macs
  before = re.findall(r'(\S+) +(\d+) -> ', now['load'])
  assert before == re.findall(r'(\S+) +(\d+) -> ', committed['load'])
  assert now['settings'] == committed['settings']
  assert got['test_top1'] > 0.95


def check_bring_your_own_network(folder, *, short):
  """Figures that are printed are those of the runs' results."""
  committed, now = execute_like_committed(
    'bring_your_own_network', folder, short
  )
  for cell in ('sites', 'union'):  # the full network is the same everywhere
    assert now[cell] == committed[cell]
  difference = re.search(r'differ by (\S+)', now['difference'])
  assert float(difference[1]) < 1e-3
  got = result(folder, 'finetuned')
  assert got['learned']['macs'] < got['baseline']['macs']
  assert got['compact_max_abs_diff'] < 1e-3
  assert f'accuracy {got["top1"]["compact"]:.2%}' in now['difference']
  assert 'target macs' in now['closing']
  return got


@pytest.mark.long
def test_bring_your_own_network_shortened(tmp_path):
  check_bring_your_own_network(tmp_path, short=True)


@pytest.mark.long
def test_bring_your_own_network(tmp_path):
  got = check_bring_your_own_network(tmp_path, short=False)
  assert got['test_top1'] > 0.95


@pytest.mark.slow
@pytest.mark.parametrize('path', execute.PATHS, ids=lambda p: p.stem)
def test_first_cell_gets_the_project(path, tmp_path):
  """As in Colab, which has the notebook only; pip runs dry and without an
  index."""
  origin, folder = tmp_path / 'origin', tmp_path / 'content'
  folder.mkdir()
  for name in ('configs', 'dnal_jax'):
    shutil.copytree(
      ROOT / name, origin / name, ignore=shutil.ignore_patterns('__pycache__')
    )
  shutil.copy(ROOT / 'requirements.txt', origin)
  git = ('git', '-c', 'user.name=a', '-c', 'user.email=a@b', '-C', origin)
  for arguments in (('init', '-q'), ('add', '.'), ('commit', '-qm', 'all')):
    subprocess.run((*git, *arguments), check=True)
  notebook = read(path)
  setup = code_cells(notebook)[0]
  asked = nbformat.v4.new_code_cell(
    'import dnal_jax, dnal_jax.config\nprint(dnal_jax.__file__)'
  )
  notebook.cells = [setup, asked]
  address = re.search(r'https://\S+', setup.source)[0]
  nbclient.NotebookClient(
    notebook, timeout=300, resources={'metadata': {'path': str(folder)}}
  ).execute(
    env={
      **execute.environment(),
      'GIT_CONFIG_COUNT': '1',
      'GIT_CONFIG_KEY_0': f'url.file://{origin}.insteadOf',
      'GIT_CONFIG_VALUE_0': address,
      'PYTHONPATH': str(folder),  # which Colab has there
      'PIP_DRY_RUN': '1',
      'PIP_NO_INDEX': '1',
    }
  )
  assert 'ERROR' not in printed(setup)
  found = folder / 'dnal_jax' / 'dnal_jax' / '__init__.py'
  assert printed(asked) == f'{found}\n'
  needed = (folder / 'dnal_jax' / 'needed.txt').read_text()
  assert 'jax>=' in needed
  assert 'tensorflow-cpu' not in needed
