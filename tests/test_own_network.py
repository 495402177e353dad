"""A user's network: registered, learned, loaded, and refused if it is wrong."""

from functools import partial
import json
import re
import subprocess
import sys
import textwrap

from commands import ROOT, SHORT, run_here, succeed
import examples
from flax import linen
from image_folder import write_folder
import jax
import jax.numpy as jnp
from PIL import Image
import pytest

import dnal_jax
from dnal_jax import errors, models, nn, predict
from dnal_jax.cost import exact
from dnal_jax.models import registry

# What a user writes: a network whose second block is rematerialised, and a
# config that registers it.
MINE = """
  from configs import quickstart
  from flax import linen
  from dnal_jax import models, nn


  class Block(linen.Module):
    features: int
    keep: nn.Keep
    train: bool

    @linen.compact
    def __call__(self, m):
      y = nn.ConvBn(
        nn.gated(self, 'out', self.features),
        3,
        gate=nn.Gate(name='out'),
        train=self.train,
        name='conv',
      )(m)
      return nn.act(nn.relu_of_sum, nn.add(y, shortcut=m))


  class Tiny(linen.Module):
    classes: int
    width: float = 1.0
    keep: nn.Keep = nn.KEEP_ALL

    min_image = 2

    @linen.compact
    def __call__(self, x, train=False):
      n = nn.scaled(16, self.width)
      m = nn.ConvBn(
        nn.gated(self, 'stem', n),
        3,
        gate=nn.Gate(name='stem'),
        train=train,
        name='stem_conv',
      )(nn.image(x))
      m = nn.act(nn.relu, m)
      m = linen.remat(Block)(n, self.keep, train, name='block')(m)
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
  monkeypatch.setattr(registry, '_REGISTERED', {})


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
def test_a_users_config_runs_and_its_folder_loads(tmp_path, mine):
  workdir, config = tmp_path / 'run', tmp_path / 'mine.py'
  config.write_text(textwrap.dedent(MINE))
  flags = (*SHORT, '--config.network.width=1.5')
  printed = succeed(workdir, *flags, config=config)
  assert 'tiny on digits' in printed
  (line,) = re.findall(r'in Python, (.*)', printed)
  exec(line, {})  # as the run prints it
  registry._REGISTERED.clear()
  with pytest.raises(errors.UserError, match=r"models\.register\('tiny', "):
    dnal_jax.load(workdir)  # the run was another process
  mine['get_config']()
  net, variables = dnal_jax.load(workdir)
  assert type(net) is mine['Tiny']
  result = json.loads((workdir / 'result.json').read_text())
  assert exact.count(net, (8, 8, 1)).macs == result['learned']['macs']
  assert net.apply(variables, jnp.zeros((2, 8, 8, 1))).shape == (2, 10)
  alone = summary(f'--architecture={workdir}/architecture.json')
  assert alone.returncode == 2
  assert "models.register('tiny', ...)" in alone.stderr
  both = summary(workdir, f'--config={config}', '--json')
  assert both.returncode == 0, both.stderr
  summarised = json.loads(both.stdout)
  assert [row['layer'] for row in summarised['layers']] == [
    *('stem_conv', 'block/conv', 'head/logits')
  ]
  assert summarised['learned'] == result['learned']
  registry._REGISTERED.clear()
  image = str(tmp_path / 'image.png')
  Image.new('L', (8, 8)).save(image)
  predicted = run_here(predict, workdir, image, f'--config={config}')
  assert predicted.code == 0, predicted.err
  assert predicted.out.startswith(f'{image}: ')


@pytest.mark.long
@pytest.mark.xdist_group('streamed')
def test_the_whole_file_of_the_docs_trains_on_a_folder(tmp_path):
  (text,) = (
    example.text
    for example in examples.all_examples('python')
    if 'class Residual' in example.text
  )
  (file := tmp_path / 'residual.py').write_text(text)
  (command,) = (
    c for c in examples.all_commands() if '--config=residual.py ' in c
  )
  folder = write_folder(tmp_path / 'photographs')
  words = examples.filled_in(command, folder)
  flags = [a for a in words if not a.startswith(('--config=', '--workdir='))][
    3:
  ]
  few = (*SHORT, '--config.data.validation=5', '--config.eval_batch_size=7')
  workdir = tmp_path / 'run'
  printed = succeed(workdir, *flags, *few, config=file)
  assert 'residual on' in printed
  ended = run_here(
    predict, workdir, folder / 'val', '--json', f'--config={file}'
  )
  assert (ended.code, len(ended.out.splitlines())) == (0, 7), ended.err


@pytest.mark.usefixtures('registered')
def test_the_message_for_an_unknown_network_says_how_to_register_it():
  with pytest.raises(errors.UserError, match="unknown network 'mine'") as error:
    models.get('mine')
  assert "models.register('mine', ...)" in str(error.value)


@pytest.mark.usefixtures('registered')
def test_names_of_the_zoo_are_refused_and_names_of_users_replaced(mine):
  variant = models.Variant(mine['Tiny'], image=8, classes=10)
  with pytest.raises(errors.UserError, match=r"'vgg16'.* by another name"):
    models.register('vgg16', variant)
  with pytest.raises(errors.UserError, match='100 characters'):
    models.register('a' * 101, variant)
  models.register('tiny', variant)
  models.register('tiny', variant._replace(classes=3))
  assert models.get('tiny').classes == 3
  with pytest.raises(errors.UserError, match="did you mean 'tiny'"):
    models.get('tinny')


@pytest.mark.usefixtures('registered')
@pytest.mark.parametrize(
  'name', [name for name in models.NETWORKS if name.endswith('_digits')]
)
def test_networks_of_the_zoo_would_be_accepted(name):
  models.register('another', models.NETWORKS[name])
  assert models.get('another') is models.NETWORKS[name]


class Block(linen.Module):
  keep: nn.Keep = nn.KEEP_ALL

  @linen.compact
  def __call__(self, m):
    return nn.ConvBn(
      nn.gated(self, 'gate', 8), 3, gate=nn.Gate(name='gate'), name='conv'
    )(m)


class Faulty(linen.Module):
  """A network with one fault, or none."""

  classes: int
  width: float = 1.0
  keep: nn.Keep = nn.KEEP_ALL
  fault: str | list | None = None

  min_image = 1

  @linen.compact
  def __call__(self, x: jax.Array, train: bool = False) -> jax.Array:
    m = nn.image(x)
    if self.fault == 'no gate':
      m = nn.ConvBn(nn.ungated(8), 3, name='conv')(m)
    else:
      keep = nn.KEEP_ALL if self.fault == 'keep' else self.keep
      m = Block(keep, name='block')(m)
    if self.fault == 'unused gate':
      m = nn.ConvBn(nn.gated(self, 'unused', 8), 3, name='conv')(m)
    if self.fault == 'dense':
      m = nn.act(linen.Dense(8, name='mine'), m)
    name = 'classifier' if self.fault == 'head' else 'head'
    return nn.Head(self.classes, name=name)(nn.average(m))


def faulty(fault):
  return partial(Faulty, fault=fault)


class WithoutMinImage(linen.Module):
  classes: int
  width: float = 1.0
  keep: nn.Keep = nn.KEEP_ALL


class WithoutWidth(linen.Module):
  classes: int
  keep: nn.Keep = nn.KEEP_ALL


@pytest.mark.usefixtures('registered')
@pytest.mark.parametrize(
  ('build', 'message'),
  [
    (WithoutWidth, "WithoutWidth.*'width'.*: make them fields of its class"),
    (WithoutMinImage, r'\(WithoutMinImage\) has no min_image: add it'),
    (faulty([]), r'\(Faulty\) .*cannot be hashed: use tuples'),
    (faulty('no gate'), r'\(Faulty\) has no gate.*: pass gate=nn\.Gate\(name='),
    (
      faulty('unused gate'),
      r"layer 'conv'.* gate 'unused'.*: pass gate=nn\.Gate\(name='unused'\)",
    ),
    (faulty('head'), r"has no classifier: .*nn\.Head\(\.\.\., name='head'\)"),
    (faulty('dense'), r"parameter 'mine/bias'.*: use nn\.ConvBn and nn\.Head"),
    (faulty('keep'), r"gate 'block/gate': .*nn\.gated.* keep=self\.keep"),
  ],
)
def test_a_faulty_network_is_refused_with_the_fix(build, message):
  with pytest.raises(errors.UserError, match=f"network 'mine' .*{message}"):
    models.register('mine', models.Variant(build, image=8, classes=10))
  with pytest.raises(errors.UserError, match='unknown network'):
    models.get('mine')


@pytest.mark.usefixtures('registered')
def test_the_same_network_without_a_fault_is_accepted():
  models.register('mine', models.Variant(Faulty, image=8, classes=10))


def test_a_width_that_is_a_number_is_refused_with_the_fix():
  message = r"layer 'conv' has the width 8: make it with nn\.gated\(self, 'N"
  with pytest.raises(TypeError, match=message):
    nn.ConvBn(8, 3, name='conv')


def test_a_sum_of_maps_of_other_positions_names_the_fix():
  a, b = (nn.image(jnp.zeros((1, side, side, 3))) for side in (8, 4))
  with pytest.raises(ValueError, match=r'4x4 and 8x8 positions.*nn\.subsample'):
    nn.add(a, shortcut=b)
