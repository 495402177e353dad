"""Rankings of channels without a search."""

from commands import metrics, result
import in_process
import numpy as np
import pytest

from dnal_jax import errors, trees
from dnal_jax.graph import surgery, walk
from dnal_jax.models import zoo
from dnal_jax.search import ranking
from dnal_jax.search.budget import Target

NAMES = ['vgg7_digits', 'resnet8_digits', 'mobilenet_v2_digits']


def graph_of(name):
  net = zoo.NETWORKS[name].build(classes=10)
  return net, walk.graph_of(net, (8, 8, 1))


def decide(graph, scores, **target):
  """{gate: ids that are kept}."""
  budget = Target(**target).budget(graph, graph)
  masks = budget.decide(scores, 1)
  assert 0.99 < max(budget.shares(masks)) <= 1
  return {
    gate: tuple(np.array(ids)[masks[gate] > 0])
    for gate, ids in graph.gates.items()
  }


def random_scales(graph, rng):
  """The collection `params` with random scales of BatchNorm."""
  flat = trees.flatten(graph.shapes['params'])
  return trees.unflatten({p: rng.normal(size=a.shape) for p, a in flat.items()})


@pytest.mark.parametrize('name', NAMES)
@pytest.mark.parametrize('share', [0.5, 0.2])
def test_uniform_keeps_the_same_share_of_every_gate(name, share):
  """To a channel, which is where the target is met; and it is narrow: sums
  have no more channels than the layers that write them."""
  net, graph = graph_of(name)
  keep = decide(graph, ranking.uniform(graph), macs=share)
  kept = {g: len(ids) / len(graph.gates[g]) for g, ids in keep.items()}
  for gate, of_gate in kept.items():
    one = 1 / len(graph.gates[gate])
    assert abs(of_gate - np.median(list(kept.values()))) < 2.5 * one + 1e-9
  small = walk.graph_of(surgery.with_keep(net, keep), (8, 8, 1))
  for path, layer in small.layers.items():
    for part in layer.in_written if layer.in_ids is not None else ():
      most = max(len(p.ids) for p in layer.in_written)
      assert len(layer.in_ids) <= most + 1, (path, part)


@pytest.mark.parametrize('name', NAMES)
def test_the_largest_scales_are_kept(name):
  _, graph = graph_of(name)
  params = random_scales(graph, np.random.default_rng(0))
  scales = ranking.by_scale(graph, params)
  flat = trees.flatten(params)
  layers = [(p, n) for p, n in graph.layers.items() if n.out_gate and n.norm]
  for gate in graph.gates:
    of_gate = [
      abs(flat[f'{path}/bn/scale']) for path, n in layers if n.out_gate == gate
    ]
    np.testing.assert_allclose(scales[gate], np.mean(of_gate, 0))
  kept = decide(graph, scales, params=0.3)
  smallest = min(
    scales[gate][graph.gates[gate].index(c)]
    for gate, ids in kept.items()
    for c in ids
  )
  gone = [
    scales[gate][graph.gates[gate].index(c)]
    for gate, ids in graph.gates.items()
    for c in ids
    if c not in kept[gate]
  ]
  # Some that cost little are added back where no other fits.
  assert np.median(gone) < smallest + 0.5


def test_channels_that_are_added_go_together():
  """Of a residual stream: the same ones of each branch, by their mean scale."""
  _, graph = graph_of('resnet8_digits')
  params = random_scales(graph, np.random.default_rng(1))
  scores = ranking.uniform_by_scale(graph, params)
  added = ranking._added(graph)
  assert added
  scales = ranking.by_scale(graph, params)
  means = [np.mean([scales[g][i] for g, i in members]) for members in added]
  for gate in graph.gates:
    mine = [
      (scores[gate][i], mean)
      for members, mean in zip(added, means, strict=True)
      for g, i in members
      if g == gate
    ]
    if mine:
      assert len(mine) == len(scores[gate])
      assert [m for _, m in sorted(mine)] == sorted(m for _, m in mine)
  assert any(len({g for g, _ in members}) > 2 for members in added)


def test_taylor_divides_by_what_a_channel_costs():
  """At equal gradients the cheapest channels are kept, and a channel without
  a gradient goes first."""
  _, graph = graph_of('vgg7_digits')
  budget = Target(macs=0.5).budget(graph, graph)
  squares = {gate: np.ones(len(ids)) for gate, ids in graph.gates.items()}
  squares['gate2_1'][3] = 0.0
  scores = ranking.by_taylor(squares, budget)
  assert scores['gate2_1'][3] == 0
  del squares['gate2_1']
  (cost,) = budget.costs
  gates = {g: np.ones(len(ids), np.float32) for g, ids in graph.gates.items()}
  for gate in squares:
    less = {**gates, gate: gates[gate].copy()}
    less[gate][0] = 0
    price = (cost(gates) - cost(less)) / budget.limits[0]
    np.testing.assert_allclose(scores[gate][0] * price, 1, rtol=1e-4)


RANKED = (
  "--config.order=('warmup','finetune')",
  '--config.stages.warmup.epochs=1',
  '--config.stages.finetune.epochs=1',
  '--config.stages.finetune.prune_by=taylor',
  '--config.stages.finetune.prune_to.macs=0.1',
)


@pytest.mark.slow
def test_a_run_without_a_search(tmp_path):
  """From the warm-up to a small network, by Taylor scores."""
  in_process.run(tmp_path, *RANKED)
  got = result(tmp_path)
  assert 0.99 < got['learned']['macs'] / got['target']['macs']['limit'] <= 1
  assert got['top1']['pruned'] == got['top1']['compact']
  assert [row['stage'] for row in metrics(tmp_path)] == ['warmup', 'finetune']


@pytest.mark.long
def test_without_a_search_from_the_warmup_of_another_run(tmp_path):
  """Killed behind the cut, on the way from a warm-up of its own and from that
  of another run: the same files."""
  whole = tmp_path / 'whole'
  in_process.run(whole, *RANKED)
  for name, flags in (
    ('killed', RANKED),
    ('begun', (*RANKED, f'--config.init_from={whole}')),
  ):
    at = in_process.at_line('finetune 1/', in_process.kill)
    with at, pytest.raises(in_process.Killed):
      in_process.run(tmp_path / name, *flags)
    in_process.run(tmp_path / name, *flags)
    got, again = result(whole), result(tmp_path / name)
    for key in ('widths', 'top1', 'test_top1', 'target'):
      assert again[key] == got[key], key
    weights = 'model/variables.safetensors'
    assert (whole / weights).read_bytes() == (
      tmp_path / name / weights
    ).read_bytes()


@pytest.mark.slow
def test_a_uniform_network_from_the_start(tmp_path):
  """With the initial weights of a network of its size; and its channels are
  those with which another run may begin."""
  flags = '--config.target.params=0.2', '--config.stages.baseline.epochs=1'
  in_process.run(tmp_path / 'uniform', *flags, variant='uniform')
  got = result(tmp_path / 'uniform')
  assert 0.99 < got['learned']['params'] / got['target']['params']['limit'] <= 1
  shares = [left / full for full, left in got['widths'].values()]
  assert max(shares) - min(shares) < 0.05
  in_process.run(
    *(tmp_path / 'again', '--config.stages.baseline.epochs=1'),
    f'--config.init_from={tmp_path / "uniform"}',
    '--config.init_at=architecture',
    variant='baseline',
  )
  again = result(tmp_path / 'again')
  for key in ('widths', 'top1', 'test_top1'):
    assert again[key] == got[key], key


def test_what_cannot_be_ranked_is_refused(tmp_path):
  prune_to = '--config.stages.finetune.prune_to.macs=0.1'
  for flags, message in (
    (['--config.stages.finetune.prune_by=taylor'], 'prune_to has no value'),
    (['--config.stages.finetune.prune_by=tailor'], "did you mean 'taylor'"),
    (
      [
        *("--config.order=('finetune',)", prune_to),
        '--config.stages.finetune.prune_by=scale',
      ],
      "prunes by 'scale', but no stage before it trains weights",
    ),
    (
      ['--config.stages.finetune.prune_to.macs=1e-5'],
      'prune_to.macs is 1e-05, but .* cannot have less than 1,522 macs',
    ),
  ):
    with pytest.raises(errors.UserError, match=message):
      in_process.run(tmp_path / 'run', *flags)
  with pytest.raises(errors.UserError, match='prune_to has no value'):
    in_process.run(tmp_path / 'run', variant='uniform')
  assert not (tmp_path / 'run').exists()
