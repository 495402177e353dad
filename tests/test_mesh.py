"""A run on eight devices is the run on one, and moves no more than it must."""

import json
import math
import sys

from commands import Processes, fail
import jax
import numpy as np
import pytest

from dnal_jax import models, trees
from dnal_jax.graph import walk
from dnal_jax.parallel import mesh


def told(network, folder, devices, *cut_at, processes=1):
  command = (
    *(sys.executable, 'tests/on_devices.py'),
    *map(str, (devices, network, folder, *cut_at)),
  )
  for code, out, err in Processes(*[command] * processes).ended():
    assert code == 0, (out, err)
  return json.loads((folder / 'told.json').read_text())


@pytest.mark.slow
@pytest.mark.parametrize(
  ('network', 'ways'),
  [
    # Either network on either way takes minutes: 8 devices on few cores.
    ('vgg7_digits', ((8, 1),)),
    ('mobilenet_v2_digits', ((4, 2),)),
  ],
)
def test_eight_devices_do_what_one_does(network, ways, tmp_path):
  """(Devices of a process, processes): losses of 20 steps of each stage, across
  the cut, and the bytes that the compiled step all-reduces."""
  one = told(network, tmp_path / '1', 1)
  assert len(one['losses']) == 60
  for devices, processes in ways:
    eight = told(
      network,
      tmp_path / f'{processes}x{devices}',
      devices,
      one['cut_at'],
      processes=processes,
    )
    a, b = eight['losses'], one['losses']
    np.testing.assert_allclose(a[:5], b[:5], rtol=1e-5)
    np.testing.assert_allclose(a, b, rtol=1e-3)
    assert eight['kept'] == one['kept']
    check_moved(network, eight['moved'])
  assert not any(one['moved'].values())


def check_moved(network, moved):
  """Only what trains is reduced, and the sums of BatchNorm."""
  shapes = walk.graph_of(
    models.get(network).build(classes=10), (8, 8, 1)
  ).shapes
  params, head, moments = (
    4 * sum(math.prod(a.shape) for a in trees.flatten(tree).values())
    for tree in (
      shapes['params'],
      shapes['params']['head'],
      shapes['batch_stats'],
    )
  )
  for of_stage in moved.values():
    assert set(of_stage) == {'all-reduce'}
  assert moved['warmup']['all-reduce'] <= 1.05 * (params + moments)
  # In the warm-up, the sums that BatchNorm needs backwards are the gradients
  # of its parameters; here they come by themselves, and give those of gates.
  searched = head + 2 * moments
  assert moved['search']['all-reduce'] <= 1.05 * searched


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
  assert mesh.device_count() == 1
  rows = np.arange(6.0)
  assert mesh.batch_sharded(rows) is rows
  assert mesh.replicated(rows) is rows
  assert mesh.replicated_shapes(rows) == jax.ShapeDtypeStruct((6,), rows.dtype)
  np.testing.assert_array_equal(mesh.put_batch_sharded(rows), rows)
