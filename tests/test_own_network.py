"""A network of one's own: registered, learned, loaded, and refused if unfit."""

import json
import subprocess
import sys
import textwrap

from commands import ROOT, SHORT, fail, succeed
from flax import linen
import jax
import jax.numpy as jnp
import pytest

import dnal_jax
from dnal_jax import errors, models, nn
from dnal_jax.cost import exact

# What a user writes: the network, and a config that registers it.
MINE = """
  from configs import quickstart
  from flax import linen
  from dnal_jax import layers, models


  class Tiny(linen.Module):
    classes: int
    width: float = 1.0
    keep: nn.Keep = nn.NO_KEEP

    min_image = 2

    @linen.compact
    def __call__(self, x, train=False):
      n = nn.scaled(16, self.width)
      m = nn.image(x)
      for i in (1, 2):
        y = nn.ConvBn(
          nn.gated(self, f'gate{i}', n), 3, train=train, name=f'conv{i}'
        )(m)
        y = nn.act(nn.relu, nn.Gate(name=f'gate{i}')(y))
        m = y if i == 1 else nn.add(y, shortcut=m)
      m = nn.average(nn.max_pool(m, 2))
      return nn.Head(self.classes, train=train, name='head')(m)


  def get_config(variant=''):
    models.register('tiny', models.Variant(Tiny, image=8, classes=10))
    config = quickstart.get_config(variant)
    config.network.name = 'tiny'
    return config
"""


@pytest.fixture
def registered(monkeypatch):
  """An empty registry, for the test alone."""
  monkeypatch.setattr(models, '_REGISTERED', {})


@pytest.fixture
def mine():
  names = {'__name__': 'mine'}
  exec(textwrap.dedent(MINE), names)
  return names


def summary(*flags):
  command = (sys.executable, '-m', 'dnal_jax.summary', *flags)
  return subprocess.run(
    command, cwd=ROOT, capture_output=True, text=True, check=False
  )


@pytest.mark.slow
@pytest.mark.usefixtures('registered')
def test_config_of_ones_own_runs_and_its_folder_loads(tmp_path, mine):
  workdir, config = tmp_path / 'run', tmp_path / 'mine.py'
  config.write_text(textwrap.dedent(MINE))
  printed = succeed(workdir, *SHORT, config=config)
  assert 'tiny on digits' in printed
  with pytest.raises(errors.UserError, match=r"models\.register\('tiny', "):
    dnal_jax.load(workdir)  # another process than the run
  mine['get_config']()
  net, variables = dnal_jax.load(workdir)
  assert type(net) is mine['Tiny']
  result = json.loads((workdir / 'result.json').read_text())
  assert exact.count(net, (8, 8, 1)).macs == result['learned']['macs']
  assert net.apply(variables, jnp.zeros((2, 8, 8, 1))).shape == (2, 10)
  architecture = f'--architecture={workdir}/architecture.json'
  alone = summary(architecture)
  assert alone.returncode == 2
  assert "models.register('tiny', ...)" in alone.stderr
  both = summary(architecture, f'--config={config}', '--json')
  assert both.returncode == 0, both.stderr
  told = json.loads(both.stdout)
  assert [row['layer'] for row in told['layers']] == [
    *('conv1', 'conv2', 'head/logits')
  ]
  assert told['learned'] == result['learned']


def test_unknown_network_tells_how_to_register(tmp_path):
  told = fail(tmp_path / 'run', '--config.network.name=mine')
  assert "unknown network 'mine'" in told
  assert "known after models.register('mine', ...)" in told


@pytest.mark.usefixtures('registered')
def test_names_of_ours_stay_and_ones_own_are_replaced(mine):
  variant = models.Variant(mine['Tiny'], image=8, classes=10)
  with pytest.raises(errors.UserError, match="'vgg16' is a network of ours"):
    models.register('vgg16', variant)
  models.register('tiny', variant)
  models.register('tiny', variant._replace(classes=3))
  assert models.get('tiny').classes == 3
  with pytest.raises(errors.UserError, match="did you mean 'tiny'"):
    models.get('tinny')


@pytest.mark.usefixtures('registered')
@pytest.mark.parametrize(
  'name', [name for name in models.NETWORKS if name.endswith('_digits')]
)
def test_every_network_of_ours_would_be_taken(name):
  models.register('another', models.NETWORKS[name])
  assert models.get('another') is models.NETWORKS[name]


class Block(linen.Module):
  keep: nn.Keep = nn.NO_KEEP

  @linen.compact
  def __call__(self, m):
    m = nn.ConvBn(nn.gated(self, 'gate', 8), 3, name='conv')(m)
    return nn.Gate(name='gate')(m)


class Unfit(linen.Module):
  """Fit only as `Unfit(fault=None)`."""

  classes: int
  width: float = 1.0
  keep: nn.Keep = nn.NO_KEEP
  fault: str | list | None = None

  min_image = 1

  @linen.compact
  def __call__(self, x: jax.Array, train: bool = False) -> jax.Array:
    m = nn.image(x)
    if self.fault == 'no gate':
      m = nn.ConvBn(nn.full(8), 3, name='conv')(m)
    else:
      keep = nn.NO_KEEP if self.fault == 'keep' else self.keep
      m = Block(keep, name='block')(m)
    if self.fault == 'dense':
      m = nn.act(linen.Dense(8, name='mine'), m)
    name = 'classifier' if self.fault == 'head' else 'head'
    return nn.Head(self.classes, name=name)(nn.average(m))


class WithoutMinImage(linen.Module):
  classes: int
  width: float = 1.0
  keep: nn.Keep = nn.NO_KEEP


class WithoutWidth(linen.Module):
  classes: int
  keep: nn.Keep = nn.NO_KEEP


@pytest.mark.usefixtures('registered')
@pytest.mark.parametrize(
  ('build', 'message'),
  [
    (WithoutWidth, "'width'.*: make them fields of its class"),
    (WithoutMinImage, 'has no min_image: add it'),
    (lambda **kw: Unfit(fault=[], **kw), 'cannot be hashed: use tuples'),
    (lambda **kw: Unfit(fault='no gate', **kw), r'has no layers\.Gate'),
    (lambda **kw: Unfit(fault='head', **kw), r'layers\.Head\(\.\.\., name='),
    (lambda **kw: Unfit(fault='dense', **kw), "parameter 'mine/bias', which"),
    (lambda **kw: Unfit(fault='keep', **kw), "gate 'block/gate'.*keep=self"),
  ],
)
def test_unfit_network_is_refused_with_the_fix(build, message):
  with pytest.raises(errors.UserError, match=f"network 'mine' .*{message}"):
    models.register('mine', models.Variant(build, image=8, classes=10))
  with pytest.raises(errors.UserError, match='unknown network'):
    models.get('mine')


@pytest.mark.usefixtures('registered')
def test_the_same_network_without_a_fault_is_taken():
  models.register('mine', models.Variant(Unfit, image=8, classes=10))
