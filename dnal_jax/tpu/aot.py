"""Ahead-of-time compilation of the train steps of a run, for any TPU slice.

There is no second definition of a step: `loop.CompiledStage` is lowered on
shapes, under the mesh of the slice's devices.
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
from dnal_jax.training import loop, optimizer
from dnal_jax.training.stages import Stage

# Prefix of XLA's error for a program that needs more memory than a chip has.
_OUT_OF_MEMORY = 'RESOURCE_EXHAUSTED: '


class AotCompiler:
  """Compiles all stages of a run at any batch size; a JAX mesh must be set."""

  def __init__(self, config: RunConfig, net: Any, chip: topologies.Chip):
    self._config, self._net, self._chip = config, net, chip
    # Traced here, because under the mesh no device computes.
    self._graph = walk.graph_of(net, config.image_shape)

  def inputs(self, batch: int) -> sources.Source:
    """The inputs of a step.

    Raises:
      UserError: the data set has fewer images than the batch.
    """
    data, seed = self._config.data, self._config.seed
    return sources.describe_source(data, seed=seed, batch_size=batch)

  def stages(self, batch: int) -> Iterator[dict[str, Any]]:
    """Yields one row per stage of the run, in order, as each is compiled:

    stage, same_as    its name; the earlier stage that is the same program
    compile_seconds
    fits              whether the program compiled and needs at most `hbm`
    hbm, memory       bytes of a chip; bytes of the program by use: arguments,
                      outputs, aliased (arguments reused for outputs, negative),
                      temporaries, code. Streamed batches that wait for their
                      step are not included
    compiler_message  of the compiler if the program did not fit, else None
    macs              of a forward pass: `exact.count` times the batch size
    macs_with_gradients
    collectives       {operation: bytes} that the chips exchange in the compiled
                      program; None if it did not fit
    ideal_all_reduce  bytes that any data-parallel step must sum over the chips
    bounds            seconds, see `topologies.bounds`; None if it did not fit
    """
    inputs = self.inputs(batch)
    compiled: dict[str, dict[str, Any]] = {}  # by the lowered program
    for stage in self._config.stages:
      program = loop.CompiledStage(
        self._net,
        stage,
        inputs,
        dtype=self._config.compute_dtype,
        first_step=0,  # an argument: any value gives the same program
        grad_accum_steps=self._config.grad_accum_steps,
        budget=stage.target.budget(self._graph, self._graph),
        teacher=self._teacher(stage),
      )
      state = loop.state_shapes(stage, self._graph.shapes)
      lowered = program.lower(state, inputs.input_shapes())
      key = lowered.as_text()
      row: dict[str, Any] = {'stage': stage.name, 'same_as': None}
      if key in compiled:
        same = {'same_as': compiled[key]['stage'], 'compile_seconds': 0.0}
        yield compiled[key] | row | same
        continue
      compiled[key] = row | self._compile(stage, lowered, batch)
      yield compiled[key]

  def _teacher(self, stage: Stage) -> tuple[Any, Any]:
    """The full network stands for any teacher."""
    if stage.distill.teacher is None:
      return None, None
    return self._net, mesh.replicated_shapes(self._graph.shapes)

  def _compile(
    self, stage: Stage, lowered: jax.stages.Lowered, batch: int
  ) -> dict[str, Any]:
    started = time.perf_counter()
    program, message = None, None
    try:
      program = lowered.compile()
    except jax.errors.JaxRuntimeError as error:
      message = str(error).splitlines()[0]
      if not message.startswith(_OUT_OF_MEMORY):
        raise
      message = message.removeprefix(_OUT_OF_MEMORY)
    row = {
      'compile_seconds': time.perf_counter() - started,
      'fits': program is not None,
      'hbm': self._chip.hbm,
      'memory': None,
      'compiler_message': message,
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
  """Bytes that a compiled program takes on a chip, in total and by use."""
  parts = {
    'arguments': analysis.argument_size_in_bytes,
    'outputs': analysis.output_size_in_bytes,
    'aliased': -analysis.alias_size_in_bytes,
    'temporaries': analysis.temp_size_in_bytes,
    'code': analysis.generated_code_size_in_bytes,
  }
  return {'total': sum(parts.values()), **parts}


def macs_with_gradients(stage: Stage, graph: walk.Graph) -> int:
  """Multiply-adds of one image in a train step.

  Each convolution and linear layer counts once for the forward pass, once for
  its input gradient if anything before it trains, and once for its kernel
  gradient if its kernel trains.
  """
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
  """Bytes that a data-parallel step must sum over its devices.

  These are the gradients of what trains, the moments of BatchNorm, and two sums
  per channel in BatchNorm's backward pass. Where BatchNorm's parameters train,
  the two sums are their gradients. The gradient of a gate directly behind a
  BatchNorm, as all gates of our networks are, follows from the same sums.
  """
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
  """{path: group} of the leaves that the stage trains."""
  kinds = {k: graph.shapes[k] for k in ('params', 'gates') if k in graph.shapes}
  return optimizer.assign_groups(stage.train, trees.flatten(kinds))


def _bytes(shape: jax.ShapeDtypeStruct) -> int:
  return math.prod(shape.shape) * shape.dtype.itemsize
