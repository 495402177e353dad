"""A teacher's part in the loss."""

from commands import assert_same, result
import in_process
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from dnal_jax import errors, models
from dnal_jax.data.batches import Batch
from dnal_jax.search import channel_gates
from dnal_jax.training import losses
from dnal_jax.training.optimizer import ParamGroup
from dnal_jax.training.schedule import LearningRate
from dnal_jax.training.stages import Distill, Stage
from dnal_jax.training.step import train_step
from dnal_jax.training.train_state import create_train_state


def test_distillation_is_the_divergence_of_softened_logits():
  """T^2 KL(p || q), computed in numpy; 0 for equal logits."""
  rng = np.random.default_rng(0)
  student, teacher = rng.normal(size=(2, 5, 7))
  for temperature in (1.0, 4.0):
    p, q = (np.exp(x / temperature) for x in (teacher, student))
    p, q = (x / x.sum(1, keepdims=True) for x in (p, q))
    want = temperature**2 * (p * np.log(p / q)).sum(1)
    got = losses.distillation(
      jnp.asarray(student), jnp.asarray(teacher), temperature
    )
    np.testing.assert_allclose(got, want, rtol=1e-4)
  same = losses.distillation(jnp.asarray(teacher), jnp.asarray(teacher), 2.0)
  np.testing.assert_allclose(same, 0, atol=1e-6)


@pytest.mark.slow
def test_a_step_follows_the_gradient_of_both_losses():
  """With plain SGD a step is the gradient; the teacher is as in evaluation and
  does not move, and the loss that is reported is the cross-entropy alone."""
  rate, weight, temperature = 0.5, 0.7, 3.0
  stage = Stage(
    'finetune',
    1,
    {'all': ParamGroup('params/.*', LearningRate(rate), momentum=0.0)},
    distill=Distill('DIR', weight, temperature),
  )
  net, teacher = (
    models.get('vgg7_digits').build(classes=10, width=width)
    for width in (0.25, 0.5)
  )
  image = jax.random.normal(jax.random.key(0), (6, 8, 8, 1))
  label = jnp.arange(6) % 10
  variables, of_teacher = (
    jax.jit(n.init)(jax.random.key(i), image)
    for i, n in enumerate((net, teacher), 1)
  )
  of_teacher = jax.tree.map(lambda a: a * 1.5, of_teacher)

  def loss(params):
    logits, _ = net.apply(
      {**variables, 'params': params}, image, train=True, mutable='batch_stats'
    )
    wanted = teacher.apply(of_teacher, image)
    plain = optax.softmax_cross_entropy_with_integer_labels(logits, label)
    log_p = jax.nn.log_softmax(wanted / temperature)
    log_q = jax.nn.log_softmax(logits / temperature)
    learned = (jnp.exp(log_p) * (log_p - log_q)).sum(1) * temperature**2
    return ((1 - weight) * plain + weight * learned).mean(), plain.sum()

  grads, plain = jax.jit(jax.grad(loss, has_aux=True))(variables['params'])
  state = create_train_state(
    stage,
    variables['params'],
    channel_gates.open_gates(variables['gates']),
    variables['batch_stats'],
  )
  batch = Batch(image, label, jnp.ones(6))

  @jax.jit
  def step(state, batch, of_teacher):
    return train_step(
      *(state, batch, stage.hyperparams(0), of_teacher),
      net=net,
      stage=stage,
      steps_per_epoch=1,
      teacher_net=teacher,
    )

  after, metrics = step(state, batch, of_teacher)
  want = jax.tree.map(lambda p, g: p - rate * g, variables['params'], grads)
  jax.tree.map(
    lambda a, b: np.testing.assert_allclose(a, b, rtol=0, atol=1e-5),
    after.params,
    want,
  )
  np.testing.assert_allclose(metrics['loss'], plain, rtol=1e-5)


SHORT = (
  '--config.target.macs=0.2',
  '--config.stages.warmup.epochs=1',
  '--config.stages.search.epochs=1',
  '--config.stages.finetune.epochs=2',
)


@pytest.mark.long
def test_a_run_learns_from_its_warmup_and_from_another_run(tmp_path):
  """Killed in between as well; other weights than without a teacher."""
  plain, taught, killed, other = (
    tmp_path / name for name in ('plain', 'taught', 'killed', 'other')
  )
  in_process.run(plain, *SHORT, variant='target')
  teacher = '--config.distill.teacher=warmup'
  in_process.run(taught, *SHORT, teacher, variant='target')
  for line in ('finetune 1/', 'finetune 2/'):
    at = in_process.at_line(line, in_process.kill)
    with at, pytest.raises(in_process.Killed):
      in_process.run(killed, *SHORT, teacher, variant='target')
  in_process.run(killed, *SHORT, teacher, variant='target')
  assert_same(killed, taught)
  in_process.run(
    *(other, *SHORT, f'--config.distill.teacher={plain}'), variant='target'
  )
  files = [
    (workdir / 'model/variables.safetensors').read_bytes()
    for workdir in (plain, taught, other)
  ]
  assert len({*files}) == 3
  widths = [result(workdir)['widths'] for workdir in (plain, taught, other)]
  assert widths[0] == widths[1] == widths[2]


def test_teachers_that_do_not_fit(tmp_path):
  for flags, message in (
    ([f'--config.distill.teacher={tmp_path / "no"}'], 'is not a directory'),
    (['--config.distill.teacher=', '--config.distill.weight=2.0'], 'weight is'),
    (['--config.distill.temperature=0.0'], 'temperature is 0.0; it must be'),
  ):
    with pytest.raises(errors.UserError, match=message):
      in_process.run(tmp_path / 'run', *SHORT, *flags, variant='target')
  teacher = '--config.distill.teacher=warmup'
  with pytest.raises(errors.UserError, match="teacher 'warmup', but is not"):
    in_process.run(tmp_path / 'run', teacher, variant='baseline')
  assert not (tmp_path / 'run').exists()
