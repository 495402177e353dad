"""A short form of benchmarks/damage_test.py."""

import damage_test
import pytest

from dnal_jax.data import crops


# Of tensorstore's threads, after a save that has failed: `cli.main` drops them.
@pytest.mark.filterwarnings(
  'ignore:(?s).*Event loop is closed:pytest.PytestUnraisableExceptionWarning'
)
@pytest.mark.slow
@pytest.mark.xdist_group('streamed')  # one process imports TF
@pytest.mark.parametrize(
  ('target', 'times'),
  [
    ('folder', 12),
    ('streamed', 12),
    ('resident', 8),
    ('caches', 4),
    ('compiled', 20),
    pytest.param('stopped', 10, marks=pytest.mark.long),
    pytest.param('finished', 20, marks=pytest.mark.long),
  ],
)
def test_damage_ends_in_the_right_result_or_one_message(target, times, capfd):
  crops.import_tensorflow()
  found = damage_test.trial(target, times, seed=1)
  out, err = capfd.readouterr()
  assert not found['wrong'], out
  assert sum(found.values()) == times
  assert not err
