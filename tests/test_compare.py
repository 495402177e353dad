"""A comparison of methods: its runs, its table, and what it may not see."""

import dataclasses
import io
import json
import random

from commands import run_here
import in_process
import pytest

from dnal_jax import compare, errors
from dnal_jax.compare import __main__ as command
from dnal_jax.compare import cells, table
from dnal_jax.compare.cells import Cell
from dnal_jax.config import parse_config

FLAGS = (
  '--config=configs/quickstart.py',
  '--config.data.validation=297',
  '--config.stages.warmup.epochs=1',
  '--config.stages.search.epochs=2',
  '--config.stages.finetune.epochs=1',
)
EPOCHS = 4


def comparing(workdir, *flags):
  return run_here(command, *FLAGS, f'--workdir={workdir}', *flags)


def problem():
  variants = {
    v: in_process.config(*FLAGS[1:], variant=v)
    for v in ('', 'target', 'baseline')
  }
  return compare.Problem.create(variants)


@pytest.fixture(scope='session')
def few(tmp_path_factory):
  """The folder and the output of a comparison of few methods and seeds."""
  workdir = tmp_path_factory.mktemp('compare') / 'few'
  flags = '--targets=macs=0.2', '--methods=target', '--seeds=2'
  return workdir, comparing(workdir, *flags)


@pytest.mark.slow
@pytest.mark.xdist_group('compare')
def test_every_method_at_the_same_cost_and_epochs(few):
  workdir, ended = few
  assert ended.code == 0, ended.err
  value = json.loads((workdir / 'table.json').read_text())
  rows = value['rows']
  assert len(rows) == 2 * (1 + 2)
  for row in rows:
    folder = Cell(
      row['method'], ('macs', 0.2) if row['target'] else None, row['seed']
    ).folder
    result = json.loads((workdir / folder / 'result.json').read_text())
    assert sum(stage['epochs'] for stage in result['stages']) == EPOCHS
    assert row['test'] == result['test_top1']
    assert row['validation'] == result['top1']['final']
    if row['method'] != 'full':
      assert 0.99 < row['macs'] / (result['baseline']['macs'] // 5) <= 1
  # The warm-up is shared, and ends where the others go on.
  warmup, searched = (
    json.loads((workdir / name / 'result.json').read_text())
    for name in ('warmup/0', 'target/macs_0.2/0')
  )
  assert warmup['stages'][0]['seconds'] > 0
  assert searched['stages'][0]['seconds'] == 0
  assert searched['top1']['warmup'] == warmup['top1']['final']


@pytest.mark.slow
@pytest.mark.xdist_group('compare')
def test_the_table_is_of_its_rows(few):
  """Means, Student's intervals and paired differences, by hand."""
  workdir, ended = few
  value = json.loads((workdir / 'table.json').read_text())
  rows = {(r['method'], r['seed']): r for r in value['rows']}
  (line,) = (n for n in value['summary'] if n['method'] == 'target')
  tests = [rows['target', seed]['test'] for seed in (0, 1)]
  over = [tests[s] - rows['uniform', s]['test'] for s in (0, 1)]
  for got, values in ((line['test'], tests), (line['over_uniform'], over)):
    assert got['mean'] == pytest.approx(sum(values) / 2)
    half = 12.7062 * abs(values[0] - values[1]) / 2  # t of one degree
    assert got['half'] == pytest.approx(half, rel=1e-4)
  text = (workdir / 'table.md').read_text()
  assert text.strip() in ended.out
  shown = (
    f'{100 * line["test"]["mean"]:.2f} +- {100 * line["test"]["half"]:.2f}'
  )
  assert shown in text
  assert (workdir / 'chart.png').stat().st_size > 10_000


@pytest.mark.slow
@pytest.mark.xdist_group('compare')
def test_training_costs_what_its_stages_cost(few):
  """In multiply-adds: the warm-up and the search run the full network."""
  workdir, _ = few
  rows = json.loads((workdir / 'table.json').read_text())['rows']
  by = {r['method']: r for r in rows if r['seed'] == 0}
  result = json.loads((workdir / 'full/0/result.json').read_text())
  images = result['stages'][0]['steps'] * 64
  full, epochs = by['full']['macs'], EPOCHS
  assert by['full']['training_macs'] == full * images
  assert by['uniform']['training_macs'] == by['uniform']['macs'] * images
  macs = 3 * full + by['target']['macs']
  assert by['target']['training_macs'] == macs * images // epochs


@pytest.mark.slow
@pytest.mark.xdist_group('compare')
def test_no_row_is_made_by_test_before_the_end(few, tmp_path):
  """Rows are read from results without figures of test; these are read once
  every run is done."""
  workdir, _ = few
  comparison = cells.Comparison(
    problem(), workdir, ['uniform', 'target'], [('macs', 0.2)], 2
  )
  todo = list(comparison.cells())
  rows = [table.read_row(comparison, cell) for cell in todo]
  blind = comparison._replace(workdir=tmp_path)
  for cell in todo:
    result = json.loads((workdir / cell.folder / 'result.json').read_text())
    del result['test_top1'], result['test_top5']
    folder = tmp_path / cell.folder
    folder.mkdir(parents=True)
    (folder / 'result.json').write_text(json.dumps(result))
    config = (workdir / cell.folder / 'config.json').read_text()
    (folder / 'config.json').write_text(config)
  assert [table.read_row(blind, cell) for cell in todo] == rows
  assert 'not read yet' in table.markdown(table.summary(rows))
  (tmp_path / todo[-1].folder / 'result.json').unlink()
  with pytest.raises(AssertionError, match=r'target/macs_0\.2/1'):
    table.with_test(blind, rows, todo)


@pytest.mark.slow
@pytest.mark.xdist_group('compare')
def test_a_row_that_is_not_what_it_says_ends_it(few, tmp_path):
  workdir, _ = few
  comparison = cells.Comparison(
    problem(), workdir, ['uniform'], [('macs', 0.1)], 1
  )
  cell = Cell('uniform', ('macs', 0.1), 0)
  folder = tmp_path / cell.folder
  folder.parent.mkdir(parents=True)
  folder.symlink_to(workdir / 'uniform/macs_0.2/0')
  with pytest.raises(AssertionError):
    table.read_row(comparison._replace(workdir=tmp_path), cell)


class KilledAt(io.StringIO):
  """A standard output that kills who writes a certain line, by its number."""

  def __init__(self, line):
    super().__init__()
    self._line = line

  def write(self, text):
    written = super().write(text)
    if self.getvalue().count('\n') > self._line:
      in_process.kill()
    return written


@pytest.mark.long
def test_all_methods_and_killed_five_times(tmp_path):
  """At random lines; the same table, byte for byte."""
  flags = '--targets=macs=0.3', '--seeds=1', '--config.penalty=0.2'
  whole, killed = tmp_path / 'whole', tmp_path / 'killed'
  ended = comparing(whole, *flags)
  assert ended.code == 0, ended.err
  methods = json.loads((whole / 'table.json').read_text())['summary']
  assert {n['method'] for n in methods} == {'full', *compare.METHODS}
  rng = random.Random(0)
  for _ in range(5):
    # Fewer lines are printed after each, as finished runs are silent.
    out = KilledAt(rng.randrange(5, ended.out.count('\n') // 8))
    with pytest.raises(in_process.Killed):
      run_here(command, *FLAGS, f'--workdir={killed}', *flags, out=out)
  again = comparing(killed, *flags)
  assert again.code == 0, again.err
  for file in ('table.md', 'table.json'):
    assert (killed / file).read_text() == (whole / file).read_text()


def test_lambda_by_bisection():
  """Towards the target from both sides; each trial is nearer."""
  assert cells.next_penalty([], 0.04) == 0.04
  assert cells.next_penalty([[0.04, 1.0]], 0.04) == pytest.approx(0.16)
  assert cells.next_penalty([[0.04, -9.0]], 0.04) == pytest.approx(0.01)
  both = [[0.04, 1.0], [0.16, -0.5]]
  assert cells.next_penalty(both, 0.04) == pytest.approx(0.08)


def test_methods_make_configs_that_run():
  """All parse, and train for as many epochs as any other."""
  made = problem()
  for method in compare.METHODS.values():
    config = method.make(made, {'macs': 0.25}, 0.01)
    config = json.loads(json.dumps({**config, 'seed': 0}))
    run = parse_config(config)
    assert sum(stage.epochs for stage in run.stages) == EPOCHS, method.name


def test_epochs_scale_is_multiplied_in():
  variants = {
    v: in_process.config(*FLAGS[1:], '--config.epochs_scale=0.5', variant=v)
    for v in ('', 'target', 'baseline')
  }
  scaled = compare.Problem.create(variants)
  assert scaled.epochs() == 1 + 1 + 1
  assert scaled.epochs('warmup') == 1


def test_a_method_of_ones_own(monkeypatch):
  monkeypatch.setattr(compare.methods, 'METHODS', {**compare.METHODS})
  mine = compare.Method('mine', 'nothing', lambda *_: {})
  for again in (mine, dataclasses.replace(mine, text='something')):
    compare.methods.register(again)
    assert compare.methods.METHODS['mine'] == again
  of_library = dataclasses.replace(mine, name='target')
  with pytest.raises(errors.UserError, match="'target' is a method of dnal_"):
    compare.methods.register(of_library)


@pytest.mark.parametrize(
  ('flags', 'message'),
  [
    (['--targets=flops=1'], "--targets has 'flops=1'; give macs=SHARE"),
    (['--targets=macs=x'], "--targets has 'macs=x'; give macs=SHARE"),
    (
      ['--methods=taylor'],
      "--methods has 'taylor' (did you mean 'taylor-cut'?",
    ),
    (['--seeds=0'], 'seeds=0'),
    (["--config.order=('warmup',)"], "order is ('warmup',) in the variant ''"),
    (['x'], "unexpected argument 'x'"),
  ],
)
def test_bad_input(flags, message, tmp_path):
  ended = comparing(tmp_path / 'x', *flags)
  assert (ended.code, ended.out) == (2, '')
  assert message in ended.err
  assert not (tmp_path / 'x').exists()


@pytest.mark.slow
def test_list_says_how_long_it_takes(tmp_path):
  flags = '--list', '--targets=macs=0.5', '--methods=target'
  ended = comparing(tmp_path / 'x', *flags)
  assert ended.code == 0, ended.err
  assert '9 runs, of which 0 are done' in ended.out
  assert 'target macs=0.5: ' in ended.out
  assert not (tmp_path / 'x').exists()
