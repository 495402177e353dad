"""Lowers the demo's train steps from arrays and from shapes alone, on DEVICES
virtual CPU devices, and exits with an error unless the programs are equal.

  python tests/same_program.py DEVICES
"""

from functools import partial
import sys

import jax
import numpy as np

from configs import quickstart
from dnal_jax.config import parse_config
from dnal_jax.data import sources
from dnal_jax.graph import walk
from dnal_jax.parallel import mesh
from dnal_jax.training import loop, train_state


def main():
  (devices,) = sys.argv[1:]
  jax.config.update('jax_num_cpu_devices', int(devices))
  parsed = parse_config(quickstart.get_config().to_dict())
  net = parsed.build()
  shapes = walk.graph_of(net, parsed.image_shape).shapes
  zeros = jax.tree.map(lambda a: np.zeros(a.shape, a.dtype), shapes)
  parts = [zeros[k] for k in ('params', 'gates', 'batch_stats')]
  data, seed = parsed.data, parsed.seed
  with jax.set_mesh(mesh.make_mesh()):
    source = sources.open_source(
      data, seed=seed, batch_size=64, eval_batch_size=256
    )
    arrays = source.inputs(0, 1)
    described = sources.describe_source(data, seed=seed, batch_size=64)
    for stage in parsed.stages:
      begin = partial(train_state.create_train_state, stage)
      state = jax.jit(lambda *a, f=begin: mesh.replicated(f(*a)))(*parts)
      of_shapes = loop.state_shapes(stage, shapes)
      texts = [
        loop.CompiledStage(net, stage, given, dtype='float32', first_step=0)
        .lower(*called_with)
        .as_text()
        for given, *called_with in (
          (source, state, arrays),
          (described, of_shapes, described.input_shapes()),
        )
      ]
      assert texts[0] == texts[1], stage.name
      assert f'num_partitions = {devices} ' in texts[0]


if __name__ == '__main__':
  main()
