"""The steps of a run, compiled for devices that are not there.

Nothing here is a program of its own: what is lowered is `loop.CompiledStage`
on shapes, under the mesh of a slice's devices.
"""

from collections.abc import Iterator, Mapping
import math
import time
from typing import Any

import jax

from dnal_jax import trees
from dnal_jax.config import RunConfig
from dnal_jax.data import sources
from dnal_jax.graph import walk
from dnal_jax.parallel import mesh
from dnal_jax.tpu import hlo, topologies
from dnal_jax.training import loop
from dnal_jax.training.stages import Stage

# How XLA begins to tell that a program needs more memory than there is.
_OUT_OF_MEMORY = 'RESOURCE_EXHAUSTED: '


class AotCompiler:
  """Compiles all stages of a run at any batch; `mesh` must be set."""

  def __init__(self, settings: RunConfig, net: Any, chip: topologies.Chip):
    self._settings, self._net, self._chip = settings, net, chip
    # Before there is a mesh of devices that compute nothing.
    self._graph = walk.graph_of(net, settings.image_shape)

  def inputs(self, batch: int) -> sources.Inputs:
    """What a step is given; raises UserError if there are too few images."""
    data, seed = self._settings.data, self._settings.seed
    return sources.inputs_of(data, seed=seed, batch_size=batch)

  def stages(self, batch: int) -> Iterator[dict[str, Any]]:
    """A row for each stage of the run, in the order they are compiled:

    stage, same_as    its name, and of the stage that is the same program
    compile_seconds
    fits              whether the compiler placed it and it is below `hbm`
    hbm, memory       bytes of a chip; of the program's: arguments, outputs,
                      what outputs take over from arguments, temporaries, code.
                      Streamed batches that wait for their step are not in it
    compiler_told     what the compiler said if it did not fit, else None
    macs              of a step forwards: `exact.count`'s times the batch
    macs_with_gradients
    collectives       bytes of all that chips exchange, by operation, as in
                      the compiled program; None if it did not fit
    ideal_all_reduce  bytes that any data parallel step must sum up
    bounds            seconds, see `topologies.bounds`; None if it did not fit
    """
    inputs = self.inputs(batch)
    compiled: dict[str, dict[str, Any]] = {}  # by what was lowered
    for stage in self._settings.stages:
      program = loop.CompiledStage(
        self._net,
        stage,
        inputs,
        dtype=self._settings.compute_dtype,
        first_step=0,  # wherever: it is an argument
        grad_accum_steps=self._settings.grad_accum_steps,
      )
      state = loop.state_shapes(stage, self._graph.shapes)
      lowered = program.lower(state, inputs.train_shapes())
      key = lowered.as_text()
      row: dict[str, Any] = {'stage': stage.name, 'same_as': None}
      if key in compiled:
        same = {'same_as': compiled[key]['stage'], 'compile_seconds': 0.0}
        yield compiled[key] | row | same
        continue
      compiled[key] = row | self._compile(stage, lowered, batch)
      yield compiled[key]

  def _compile(
    self, stage: Stage, lowered: jax.stages.Lowered, batch: int
  ) -> dict[str, Any]:
    started = time.perf_counter()
    program, told = None, None
    try:
      program = lowered.compile()
    except jax.errors.JaxRuntimeError as error:
      told = str(error).splitlines()[0]
      if not told.startswith(_OUT_OF_MEMORY):
        raise
      told = told.removeprefix(_OUT_OF_MEMORY)
    row = {
      'compile_seconds': time.perf_counter() - started,
      'fits': program is not None,
      'hbm': self._chip.hbm,
      'memory': None,
      'compiler_told': told,
      'macs': batch * sum(spec.macs for spec in self._graph.layers.values()),
      'macs_with_gradients': batch * macs_with_gradients(stage, self._graph),
      'collectives': None,
      'ideal_all_reduce': ideal_all_reduce(stage, self._graph),
      'bounds': None,
    }
    if program is None:
      return row
    row['memory'] = memory(program.memory_analysis())
    row['fits'] = row['memory']['total'] <= self._chip.hbm
    row['collectives'] = hlo.collectives(program.as_text() or '')
    cost: Any = program.cost_analysis()
    row['bounds'] = topologies.bounds(
      self._chip,
      mesh.device_count(),
      macs=row['macs_with_gradients'],
      bytes_accessed=cost['bytes accessed'],
      all_reduced=row['collectives'].get('all-reduce', 0),
    )
    return row


def memory(analysis: Any) -> dict[str, int]:
  """Bytes of a chip that a compiled program takes, and of what."""
  parts = {
    'arguments': analysis.argument_size_in_bytes,
    'outputs': analysis.output_size_in_bytes,
    'aliased': -analysis.alias_size_in_bytes,
    'temporaries': analysis.temp_size_in_bytes,
    'code': analysis.generated_code_size_in_bytes,
  }
  return {'total': sum(parts.values()), **parts}


def macs_with_gradients(stage: Stage, graph: walk.Graph) -> int:
  """Multiply-adds of an image in a train step: of each convolution and linear
  layer forwards; by its input, if anything before it trains; by its kernel, if
  that trains."""
  trained, macs, before = _trained(stage, graph), 0, False
  for path, spec in graph.layers.items():
    own = f'params/{path}/kernel' in trained
    macs += spec.macs * (1 + before + own)
    before |= any(
      name.startswith((f'params/{path}/', f'gates/{spec.out_gate}/'))
      for name in trained
    )
  return macs


def ideal_all_reduce(stage: Stage, graph: walk.Graph) -> int:
  """Bytes that devices must sum up in a step: the gradients of what trains;
  the moments of BatchNorm; and, backwards through a BatchNorm, two sums more,
  which are the gradients of its own parameters where those train. They give
  that of a gate, too, where it stands straight behind, as all of ours do."""
  trained = _trained(stage, graph)
  shapes = trees.flatten(
    {k: v for k, v in graph.shapes.items() if k != 'batch_stats'}
  )
  total = sum(
    _bytes(shapes[path]) for path in trained if not path.startswith('gates/')
  )
  moments = trees.flatten(graph.shapes['batch_stats'])
  for path, shape in moments.items():
    norm = path.rpartition('/')[0]
    own = any(name.startswith(f'params/{norm}/') for name in trained)
    total += _bytes(shape) * (1 if own else 2)
  return total


def _trained(stage: Stage, graph: walk.Graph) -> Mapping[str, str]:
  """{path: group} of what the stage trains."""
  kinds = {k: graph.shapes[k] for k in ('params', 'gates') if k in graph.shapes}
  return stage.groups(trees.flatten(kinds))


def _bytes(shape: jax.ShapeDtypeStruct) -> int:
  return math.prod(shape.shape) * shape.dtype.itemsize
