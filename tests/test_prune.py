"""Pruning: what is decided, what is built of it, and warnings before."""

import dataclasses

import jax
import jax.numpy as jnp
import pytest

from dnal_jax import errors, models
from dnal_jax.cost import exact
from dnal_jax.search.budget import Target
from dnal_jax.training import advice, evaluate, prune
from dnal_jax.training.optimizer import ParamGroup
from dnal_jax.training.schedule import LearningRate
from dnal_jax.training.stages import Cut, Stage, next_cut
from dnal_jax.workdir.run_state import RunState

RATE = LearningRate(0.1)
WARMUP = Stage('warmup', 2, {'w': ParamGroup('params/.*', RATE)})
SEARCH = Stage(
  'search', 4, {'g': ParamGroup('gates/.*', RATE)}, delta_end=1e4, penalty=0.1
)
FINETUNE = Stage(
  'finetune',
  2,
  {'w': ParamGroup('params/.*', RATE)},
  gate_threshold=0.9,
  channel_multiple=8,
)


@pytest.fixture(scope='module')
def model():
  net = models.get('vgg7_digits').build(classes=10)
  return prune.PrunableModel.create(net, (8, 8, 1), {})


def gate_logits(model, value):
  zeros = model.initial_gate_logits()
  return jax.tree.map(lambda a: jnp.asarray(a) + value, zeros)


def cut_of(search, threshold, multiple, ahead):
  """By the gates of a search."""
  return Cut(search, 'gates', search.target, threshold, multiple, ahead)


def test_the_next_cut():
  stages = (WARMUP, SEARCH, WARMUP, FINETUNE, SEARCH)
  cuts = [next_cut(stages, here) for here in range(5)]
  assert cuts == [
    None,  # nothing is searched yet
    cut_of(SEARCH, 0.9, 8, 2),
    cut_of(SEARCH, 0.9, 8, 1),
    None,
    None,
  ]


def test_the_next_cut_without_a_search():
  by_scale = {'prune_by': 'scale', 'prune_to': Target(macs=0.5)}
  ranked = dataclasses.replace(FINETUNE, **by_scale)
  assert next_cut((WARMUP, ranked), 0) == Cut(
    None, 'scale', Target(macs=0.5), FINETUNE.gate_threshold, 8, 1
  )
  # Gates may be ranked to another target than the search had.
  to_half = dataclasses.replace(FINETUNE, prune_to=Target(params=0.5))
  cut = next_cut((WARMUP, SEARCH, to_half), 1)
  assert cut.searched == SEARCH
  assert cut.target == Target(params=0.5)


def test_pruning_warning(model):
  cut = cut_of(SEARCH, 0.9, 1, 1)
  nothing = prune.pruning_warning(model, gate_logits(model, 1.0), cut)
  assert 'no channel would be pruned' in nothing
  assert '0.1, may be too small' in nothing
  everything = prune.pruning_warning(model, gate_logits(model, -1.0), cut)
  assert 'every channel would be pruned of gate1_1' in everything
  assert '0.1, may be too large' in everything
  one_layer = gate_logits(model, 1.0)
  one_layer['gate2_1'] = jax.tree.map(jnp.negative, one_layer['gate2_1'])
  warning = prune.pruning_warning(model, one_layer, cut)
  assert 'pruned of gate2_1,' in warning
  some = gate_logits(model, 1.0)
  some['gate2_1'] = jax.tree.map(lambda a: a.at[0].set(-1.0), some['gate2_1'])
  assert prune.pruning_warning(model, some, cut) is None


def test_advice_is_for_what_the_gates_show(model):
  """Undecided gates need a steeper sigmoid, closed ones a smaller penalty, and
  no advice is a penalty of 0 or less."""

  def warning(logit, threshold=0.9, multiple=1, **search):
    stage = dataclasses.replace(SEARCH, **search)
    cut = cut_of(stage, threshold, multiple, 1)
    return prune.pruning_warning(model, gate_logits(model, logit), cut)

  for penalty in (0.0, 0.04):
    undecided = warning(0.1, penalty=penalty, delta_end=2.0)
    assert 'every channel would be pruned of gate1_1' in undecided
    assert '448 of 448 gates are undecided' in undecided
    assert 'a larger stages.search.delta_end than 2 or more' in undecided
    assert 'stages.search.epochs than 4' in undecided
    assert 'penalty' not in undecided
    kept = warning(0.1, 0.5, penalty=penalty, delta_end=2.0)
    assert 'no channel would be pruned: 448 of 448 gates are und' in kept
    assert 'stages.search.delta_end than 2' in kept
    assert 'penalty' not in kept
  assert 'smaller penalty than 0.1, say 0.033' in warning(-1.0)
  assert 'larger penalty than 0.1, say 0.3' in warning(1.0)
  closed = warning(-1.0, penalty=0.0)
  assert 'without a penalty; try a smaller stages.search.train.*.lr' in closed
  assert 'the penalty is 0; try a penalty above 0' in warning(1.0, penalty=0.0)
  logits = gate_logits(model, 1.0)
  logits['gate3_2']['g'] = logits['gate3_2']['g'].at[5:].set(-1.0)
  rounded = prune.pruning_warning(model, logits, cut_of(SEARCH, 0.9, 128, 1))
  assert 'a smaller channel_multiple than 128' in rounded


def test_closed_layers(model):
  """Those of which no channel is left, where nothing bypasses them."""
  gates = jax.tree.map(jnp.ones_like, model.initial_gate_logits())
  assert prune.closed_layers(model, gates) == []
  gates['gate2_1']['g'] = gates['gate2_1']['g'].at[1:].set(0.09)
  assert prune.closed_layers(model, gates) == []
  gates['gate2_1']['g'] = gates['gate2_1']['g'].at[0].set(0.09)
  assert prune.closed_layers(model, gates) == ['gate2_1']
  residual = prune.PrunableModel.create(
    models.get('resnet8_digits').build(classes=10), (8, 8, 1), {}
  )
  gates = jax.tree.map(jnp.ones_like, residual.initial_gate_logits())
  bypassed = next(path for path in residual.full_gates if '/' in path)
  for name in bypassed.split('/')[:-1]:
    inner = gates[name]
  inner[bypassed.split('/')[-1]]['g'] *= 0
  assert prune.closed_layers(residual, gates) == []


def test_a_search_is_hopeless_after_three_epochs():
  advice.check_hopeless(SEARCH, {})
  advice.check_hopeless(SEARCH, {'gate1_1': 2})
  with pytest.raises(errors.UserError) as raised:
    advice.check_hopeless(SEARCH, {'gate1_1': 2, 'gate2_1': 3})
  assert (
    "stage 'search' ends early: for 3 epochs every channel of gate2_1,"
    in (str(raised.value))
  )
  assert 'a smaller penalty than 0.1, say 0.033' in str(raised.value)
  no_penalty = dataclasses.replace(SEARCH, penalty=0.0)
  with pytest.raises(errors.UserError) as raised:
    advice.check_hopeless(no_penalty, {'gate2_1': 5})
  assert 'a smaller stages.search.train.*.lr.base of the' in str(raised.value)


def test_epochs_of_closed_layers_are_counted_in_a_row():
  run = RunState().begin_stage('search', 9, 9)
  for closed in (['a'], ['a', 'b'], ['b'], ['a', 'b']):
    run = RunState.from_json(run.count_closed(closed).to_json())
  assert run.closed_epochs == {'a': 1, 'b': 3}
  assert run.begin_stage('finetune', 1, 1).closed_epochs == {}


def test_a_model_of_fewer_channels_leaves_the_full_one_as_it_is(model):
  keep = {gate: ids[:3] for gate, ids in model.full_gates.items()}
  small = model.with_channels(keep)
  assert (model.kept_channels, small.kept_channels) == (448, 18)
  assert small.gated_channels == model.gated_channels == 448
  again = prune.PrunableModel.create(model.full, (8, 8, 1), keep)
  assert (again.net, again.graph.gates) == (small.net, small.graph.gates)
  assert small.with_channels(model.full_gates).kept_channels == 448


class Agreeing:
  """An evaluator for which the two networks are the same."""

  def compare(self, masked, pruned, split):
    self.compared = masked, pruned, split
    return evaluate.Comparison(0.5, 0.5, 0.0)


def test_decision_is_handed_over_before_anything_can_fail(model):
  """And a layer that nothing bypasses may not lose all its channels."""
  net = model.full
  variables = jax.jit(net.init)(jax.random.key(0), jnp.zeros((1, 8, 8, 1)))
  params, stats = variables['params'], variables['batch_stats']
  cut, decisions = cut_of(SEARCH, 0.9, 1, 1), []

  def pruned(logits):
    return prune.prune_model(
      model,
      params,
      logits,
      stats,
      cut,
      evaluator=evaluator,
      on_decision=decisions.append,
    )

  evaluator = Agreeing()
  logits = gate_logits(model, 1.0)
  logits['gate3_2']['g'] = logits['gate3_2']['g'].at[5:].set(-1.0)
  result = pruned(logits)
  assert result.keep == decisions[0]
  assert result.keep['gate3_2'] == (0, 1, 2, 3, 4)
  assert result.model.kept_channels == 448 - 128 + 5
  assert result.variables['params']['conv3_2']['kernel'].shape == (3, 3, 128, 5)
  (masked_net, masked), (pruned_net, _), split = evaluator.compared
  assert (masked_net, pruned_net, split) == (
    model.net, result.model.net, 'validation'
  )  # fmt: skip
  assert masked['gates']['gate3_2']['g'].sum() == 5
  logits['gate2_1']['g'] = -logits['gate2_1']['g']
  with pytest.raises(errors.UserError) as raised:
    pruned(logits)
  assert 'every channel would be pruned of gate2_1,' in str(raised.value)
  assert 'smaller penalty than 0.1, say 0.033' in str(raised.value)
  assert decisions[1]['gate2_1'] == ()
  undecided = dataclasses.replace(SEARCH, delta_end=2.0, penalty=0.0)
  cut = cut._replace(search=undecided)
  with pytest.raises(errors.UserError) as raised:
    pruned(gate_logits(model, 0.1))
  assert 'larger stages.search.delta_end than 2' in str(raised.value)
  assert 'penalty' not in str(raised.value)
  logits = gate_logits(model, 0.1)  # undecided, with an open one in each layer
  for gate in model.full_gates:
    logits[gate]['g'] = logits[gate]['g'].at[0].set(9.0)
  with pytest.raises(errors.UserError) as raised:
    pruned(logits)
  assert "'search' has not found what to prune: 442 of 448" in str(raised.value)
  assert len(decisions[-1]['gate2_1']) == 1  # it is kept all the same
  to_target = dataclasses.replace(undecided, target=Target(macs=0.2))
  cut = cut._replace(search=to_target, target=to_target.target)
  limit = to_target.target.budget(model.graph, model.graph).limits[0]
  for value in (0.1, -1.0):  # undecided, and closed, all alike
    result = pruned(gate_logits(model, value))
    assert exact.count(result.model.net, (8, 8, 1)).macs <= limit
    assert all(result.keep.values())
