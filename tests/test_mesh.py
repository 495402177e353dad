"""A run on eight devices is the run on one, and moves no more than it must."""

import json
import math
import sys

from commands import Processes, fail
import jax
import numpy as np
import pytest

from dnal_jax import compact, mesh, models, trees


def told(network, folder, devices, *cut_at, processes=1):
  command = (
    *(sys.executable, 'tests/on_devices.py'),
    *map(str, (devices, network, folder, *cut_at)),
  )
  for code, out, err in Processes(*[command] * processes).ended():
    assert code == 0, (out, err)
  return json.loads((folder / 'told.json').read_text())


@pytest.mark.slow
@pytest.mark.parametrize('network', ['vgg7_digits', 'mobilenet_v2_digits'])
def test_eight_devices_do_what_one_does(network, tmp_path):
  """Of one process, and of two; losses of 20 steps of each stage, across the
  cut, and the bytes that the compiled step all-reduces."""
  one = told(network, tmp_path / '1', 1)
  cut_at = one['cut_at']
  eight = told(network, tmp_path / '8', 8, cut_at)
  two_by_four = told(network, tmp_path / '2x4', 4, cut_at, processes=2)
  assert len(one['losses']) == 60
  for several in (eight, two_by_four):
    a, b = several['losses'], one['losses']
    np.testing.assert_allclose(a[:5], b[:5], rtol=1e-5)
    np.testing.assert_allclose(a, b, rtol=1e-3)
    assert several['kept'] == one['kept']
  assert two_by_four['moved'] == eight['moved']
  assert not any(one['moved'].values())
  shapes = compact.walk(models.get(network).build(classes=10), (8, 8, 1)).shapes
  params, gates, head, moments = (
    4 * sum(math.prod(a.shape) for a in trees.flatten(tree).values())
    for tree in (
      shapes['params'],
      shapes['gates'],
      shapes['params']['head'],
      shapes['batch_stats'],
    )
  )
  for moved in eight['moved'].values():
    assert set(moved) == {'all-reduce'}
  assert eight['moved']['warmup']['all-reduce'] <= 1.05 * (params + moments)
  # In the warm-up, the sums that BatchNorm needs backwards are the gradients
  # of its parameters; here they come by themselves.
  searched = gates + head + 2 * moments
  assert eight['moved']['search']['all-reduce'] <= 1.05 * searched


@pytest.mark.slow
@pytest.mark.parametrize('key', ['batch_size', 'eval_batch_size'])
def test_a_batch_that_devices_cannot_share_is_refused(
  key, tmp_path, monkeypatch
):
  monkeypatch.setenv('JAX_NUM_CPU_DEVICES', '8')
  message = fail(tmp_path / 'run', f'--config.{key}=60')
  assert f'{key} is 60' in message
  assert '8 devices' in message
  assert not (tmp_path / 'run').exists()


def test_without_a_mesh_all_is_on_one_device():
  assert mesh.size() == 1
  rows = np.arange(6.0)
  assert mesh.shared(rows) is rows
  assert mesh.whole(rows) is rows
  assert mesh.like(rows) == jax.ShapeDtypeStruct((6,), rows.dtype)
  np.testing.assert_array_equal(mesh.put_rows(rows), rows)
