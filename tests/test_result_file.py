"""The table that a run ends with."""

import pytest

from dnal_jax.workdir import result_file


def test_closing_table_shows_what_was_measured_alone():
  counts = {
    'params': 10,
    'macs': 20,
    'reference_params': 30,
    'reference_macs': 40,
  }
  result = {
    'network': 'n',
    'dataset': 'd',
    'seed': 0,
    'stages': [{'steps': 1200}, {'steps': 34}],
    'baseline': counts,
    'learned': None,
    'gates': {'total': 5, 'kept': 5},
    'top1': {'warmup': None, 'final': 0.5},
    'compact_max_abs_diff': None,
    'test_top1': 0.25,
    'test_top5': None,
  }
  check = 'equivalence check, pruned vs. masked model'
  lines = result_file.closing_table(result).splitlines()
  assert not any('warmup' in line for line in lines)
  assert 'test top-5                       -' in lines
  assert 'test top-1                  25.00%' in lines
  assert not any(check in line or 'ratio' in line for line in lines[3:])
  half = {key: value // 2 for key, value in counts.items()}
  learned = {**result, 'learned': half, 'compact_max_abs_diff': 4.76e-6}
  table = result_file.closing_table(learned)
  assert 'unpruned          pruned    ratio' in table
  assert table.count('2.0x') == 4
  assert 'bytes of weights' not in table  # of an earlier version
  assert table.splitlines()[-1] == f'{check}: max abs logit difference 4.8e-06'
  sized = {
    **learned,
    'baseline': {**counts, 'weight_bytes': 4000},
    'learned': {**half, 'weight_bytes': 1000},
    'widths': {'stem': [128, 33], 'block1/out': [4, 0]},
  }
  table = result_file.closing_table(sized)
  assert 'bytes of weights             4,000           1,000     4.0x' in table
  assert 'stem       ######..............  33/128\n' in table
  assert 'block1/out ....................   0/4\n' in table


def of(final, compact, *, classes=10, reached=None, images=5000):
  """A result with these accuracies, and macs reached of a target of 100."""
  counts = {'params': 10, 'macs': 20}
  counts |= {f'reference_{key}': value for key, value in counts.items()}
  target = reached and {
    'macs': {'asked': 0.5, 'limit': 100, 'reached': reached}
  }
  return {
    'network': 'n',
    'dataset': 'd',
    'class_names': [str(i) for i in range(classes)],
    'seed': 0,
    'images': {'validation': images, 'test': 1234},
    'stages': [{'steps': 1200}, {'steps': 34}],
    'baseline': counts,
    'learned': counts,
    'gates': {'total': 5, 'kept': 5},
    'target': target,
    'top1': {'compact': compact, 'final': final},
    'compact_max_abs_diff': 0.0,
    'test_top1': final,
    'test_top5': 1.0,
  }


@pytest.mark.parametrize(
  ('result', 'remark'),
  [
    (of(0.9, 0.5), None),
    (of(0.9, 0.904), None),  # less than half a point
    (
      of(0.9, 0.91),
      '90.00%, is below that before fine-tuning, 91.00%. Likely: ',
    ),
    (of(0.11, 0.1), '11.00%, is about that of guessing. Likely the run is too'),
    (of(0.11, 0.1), '(it had 1,234 steps)'),
    (of(0.39, 0.35, classes=3), 'guessing'),
    (of(0.54, 0.35, classes=3, images=18), 'guessing'),
    (of(0.56, 0.35, classes=3, images=18), None),
    (of(0.9, 0.5, reached=99), None),
    (of(0.9, 0.5, reached=98), 'The cost is 98.00% of the target: no channel'),
  ],
)
def test_what_is_remarkable_is_said(result, remark):
  table = result_file.closing_table(result)
  said = ' '.join(table.split())
  if remark is None:
    assert 'Likely' not in said
    assert 'no channel more' not in said
  else:
    assert remark in said
  assert max(map(len, table.splitlines())) <= 80
  assert ' images test top-1 ' in said
  assert ' of 1,234 images' in said
  assert ('test top-5' in said) == (len(result['class_names']) > 5)
  if result['target']:
    reached = result['target']['macs']['reached']
    assert f'target macs 100 {reached} {reached:.2f}%' in said


@pytest.mark.parametrize(
  ('gates', 'lines', 'first'),
  [
    (16, 16, 'block0/mid  ##########..........  8/16'),
    (49, 17, 'block0/mid  ###...  8/16  block17/mid ###...  8/16'),
    (61, 21, 'block0  ###...  8/16  block21 ###...  8/16'),
  ],
)
def test_bars_of_many_gates_are_short(gates, lines, first):
  """In columns; and blocks rather than gates, where there are very many."""
  bars = result_file._bars({f'block{i}/mid': [16, 8] for i in range(gates)})
  assert len(bars) == lines
  assert bars[0].startswith(first)
  assert max(map(len, bars)) <= 80
