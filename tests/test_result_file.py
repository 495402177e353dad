"""The table that a run ends with."""

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
  assert table.count('2.0x') == 4
  assert table.splitlines()[-1] == f'{check}: max abs logit difference 4.8e-06'
