"""A run on several devices equals the run on one; the bytes they exchange."""

import json
import math
import sys

from commands import Processes, fail
import jax
import numpy as np
import on_devices
import pytest

from dnal_jax import models, trees
from dnal_jax.graph import walk
from dnal_jax.parallel import mesh


def measured(folder, *flags, processes=1):
  command = (sys.executable, 'tests/on_devices.py', str(folder), *flags)
  for code, out, err in Processes(*[command] * processes).ended():
    assert code == 0, (out, err)
  return json.loads((folder / 'measured.json').read_text())


def check_devices(
  folder, network, devices, processes, *, epochs, width, variant=None
):
  """One device and `devices` in each of `processes` give the same losses in all
  stages, which come across the cut, and keep the same channels."""
  flags = (f'--network={network}', f'--width={width}', f'--epochs={epochs}')
  one = measured(folder / 'one', *flags)
  assert len(one['losses']) == 3 * epochs
  many = measured(
    folder / 'many',
    *(*flags, f'--devices={devices}', f'--threshold={one["threshold"]}'),
    processes=processes,
  )
  a, b = many['losses'], one['losses']
  np.testing.assert_allclose(a[:2], b[:2], rtol=1e-5)  # four steps
  np.testing.assert_allclose(a, b, rtol=1e-3)
  assert many['kept'] == one['kept']
  net = (variant or models.get(network)).build(classes=10, width=width)
  graph = walk.graph_of(net, (8, 8, 1))
  all_gates, kept = (
    sum(map(len, gates.values())) for gates in (graph.gates, one['kept'])
  )
  assert 0 < kept < all_gates
  check_moved(graph.shapes, many['moved'])
  assert list(one['moved']) == ['warmup', 'search', 'finetune']
  assert not any(one['moved'].values())


def check_moved(shapes, moved):
  """Devices exchange gradients of what trains, and sums of BatchNorm, only."""
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
  # The backward pass of BatchNorm needs two sums of each channel. In the
  # warm-up they are the gradients of its parameters; in the search, which does
  # not train those, they are extra, and give the gradients of the gates.
  searched = head + 2 * moments
  assert moved['search']['all-reduce'] <= 1.05 * searched


@pytest.mark.long
def test_two_devices_do_what_one_does(tmp_path):
  check_devices(tmp_path, 'vgg7_digits', 2, 1, epochs=2, width=0.25)


@pytest.mark.long
def test_two_processes_of_two_devices_do_what_one_does(tmp_path):
  check_devices(tmp_path, 'vgg7_digits', 2, 2, epochs=2, width=0.25)


@pytest.mark.long
def test_three_blocks_on_two_devices(tmp_path):
  """With depthwise convolutions and a residual sum."""
  check_devices(
    tmp_path,
    *('mobilenet_v2_three_blocks', 2, 1),
    epochs=2,
    width=0.5,
    variant=on_devices.THREE_BLOCKS,
  )


@pytest.mark.long
@pytest.mark.parametrize(
  ('network', 'devices', 'processes'),
  [('vgg7_digits', 8, 1), ('mobilenet_v2_digits', 4, 2)],
)
def test_eight_devices_do_what_one_does(network, devices, processes, tmp_path):
  """20 steps of each stage, the networks in full width."""
  check_devices(tmp_path, network, devices, processes, epochs=10, width=1.0)


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


def test_without_a_mesh_arrays_stay_on_one_device():
  assert mesh.device_count() == 1
  rows = np.arange(6.0)
  assert mesh.batch_sharded(rows) is rows
  assert mesh.replicated(rows) is rows
  assert mesh.replicated_shapes(rows) == jax.ShapeDtypeStruct((6,), rows.dtype)
  np.testing.assert_array_equal(mesh.put_batch_sharded(rows), rows)
