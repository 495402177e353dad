"""What a comparison would run, and how long by a few measured steps."""

from functools import partial
import time
from typing import Any

import jax
import jax.numpy as jnp

from dnal_jax import models
from dnal_jax.compare import methods
from dnal_jax.compare.cells import FULL, Comparison
from dnal_jax.config import RunConfig, parse_config
from dnal_jax.data import sources
from dnal_jax.data.batches import Batch
from dnal_jax.graph import surgery, walk
from dnal_jax.parallel import mesh
from dnal_jax.search import channel_gates, ranking
from dnal_jax.search.budget import Target, kept_ids
from dnal_jax.status import span
from dnal_jax.training.stages import Stage
from dnal_jax.training.step import train_step
from dnal_jax.training.train_state import create_train_state

STEPS = 3  # measured, behind one that compiles


def text(comparison: Comparison) -> str:
  """The methods, the runs, and their time on the devices that JAX has."""
  lines = [f'{name}: {methods.METHODS[name].text}' for name in comparison.names]
  cells = list(comparison.cells())
  done = sum(comparison.is_done(cell) for cell in cells)
  lines += ['', f'{len(cells)} runs, of which {done} are done']
  problem, total = comparison.problem, 0.0
  with jax.set_mesh(mesh.make_mesh()):
    config = parse_config({**problem.baseline, 'seed': 0})
    source = sources.open_source(
      config.data,
      seed=0,
      batch_size=config.batch_size,
      eval_batch_size=config.eval_batch_size,
    )
    steps = source.steps_per_epoch
    source.close()
    warmup = problem.epochs('warmup')
    seconds = _seconds(problem.warmed_up(), None)
    of_warmup = warmup * steps * seconds['warmup']
    lines.append(f'{methods.WARMUP}: {span(of_warmup)} for each seed')
    of_full = problem.epochs() * steps * seconds['warmup']
    lines.append(f'{FULL}: {span(of_full)} for each seed')
    total = of_warmup + of_full
    for target in comparison.targets:
      for name in comparison.names:
        method = methods.METHODS[name]
        first = problem.paper['penalty']
        config = method.make(problem, dict([target]), first)
        seconds = _seconds(config, target)
        if method.begins_with == methods.WARMUP:
          seconds.pop('warmup', None)
        of_cell = sum(
          config['stages'][stage]['epochs'] * steps * of_step
          for stage, of_step in seconds.items()
        )
        total += of_cell
        lines.append(f'{name} {target[0]}={target[1]:g}: {span(of_cell)}')
  lines.append(
    f'about {span(total)} for each seed, {span(total * comparison.seeds)} in'
    f' all, by {STEPS} steps of each kind on {jax.devices()[0].device_kind},'
    ' without compiling, evaluation and trials of lambda'
  )
  return '\n'.join(lines)


def _seconds(
  config: methods.Config, target: tuple[str, float] | None
) -> dict[str, float]:
  """{stage: seconds of a step} of a config's run; what it has pruned stands for
  itself by a uniform network of the same cost."""
  run = parse_config({**config, 'seed': 0})
  net, found = run.build(), {}
  pruned = run.init_at == 'architecture'
  for stage in run.stages:
    pruned |= stage.prunes
    small = _uniform(net, run, target) if pruned and target else net
    found[stage.name] = _step_seconds(small, run, stage)
  return found


def _uniform(
  net: models.Network, run: RunConfig, target: tuple[str, float]
) -> models.Network:
  graph = walk.graph_of(net, run.image_shape)
  budget = Target(**dict([target])).budget(graph, graph)
  assert budget is not None
  masks = budget.decide(ranking.uniform(graph), 1)
  return surgery.with_keep(net, kept_ids(graph, masks))


def _step_seconds(net: models.Network, run: RunConfig, stage: Stage) -> float:
  graph = walk.graph_of(net, run.image_shape)
  variables: Any = jax.tree.map(
    lambda a: jnp.zeros(a.shape, a.dtype), graph.shapes
  )
  logits = channel_gates.open_gates(variables.get('gates', {}))
  state = create_train_state(
    stage, variables['params'], logits, variables['batch_stats']
  )
  batch = Batch(
    jnp.zeros((run.batch_size, *run.image_shape), run.compute_dtype),
    jnp.zeros(run.batch_size, jnp.int32),
    jnp.ones(run.batch_size),
  )
  step = jax.jit(
    partial(
      train_step,
      net=net,
      stage=stage,
      steps_per_epoch=1,
      grad_accum_steps=run.grad_accum_steps,
      budget=stage.target.budget(graph, graph),
    )
  )
  times = []
  for _ in range(1 + STEPS):
    start = time.perf_counter()
    state, _ = jax.block_until_ready(step(state, batch, stage.hyperparams(0)))
    times.append(time.perf_counter() - start)
  return min(times[1:])
