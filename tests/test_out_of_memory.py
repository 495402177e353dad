"""Too little memory is one message, and nothing else is taken for it."""

import json

from commands import SHORT
import in_process
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dnal_jax import errors, resources
from dnal_jax.config import parse_config

CONFIG = parse_config(
  in_process.config('--config.grad_accum_steps=2', '--config.batch_size=128')
)


@pytest.mark.parametrize(
  ('allocate', 'wanted'),
  [
    (lambda: jnp.zeros(2**44, np.int8), f'{2**44} bytes'),
    (lambda: np.zeros(2**60, np.int8), '1.00 EiB'),
    (lambda: bytearray(2**60), 'the host has no more'),
  ],
  ids=['device', 'numpy', 'python'],
)
def test_the_message(allocate, wanted):
  with (
    pytest.raises(errors.UserError) as raised,
    resources._report_out_of_memory(CONFIG),
  ):
    allocate()
  message = str(raised.value)
  assert wanted in message
  assert 'batch_size 128, grad_accum_steps 2' in message
  assert '--config.grad_accum_steps=4' in message


@pytest.mark.parametrize(
  'message',
  [
    'INTERNAL: out of memory',
    'RESOURCE_EXHAUSTED: Received message larger than max (5 vs. 4)',
  ],
)
def test_other_errors_of_jax_stay(message):
  error = jax.errors.JaxRuntimeError(message)
  with (
    pytest.raises(
      jax.errors.JaxRuntimeError, match=r'message|memory'
    ) as raised,
    resources._report_out_of_memory(CONFIG),
  ):
    raise error
  assert raised.value is error


@pytest.mark.slow
def test_a_run_in_which_a_program_does_not_fit(tmp_path):
  """What it has done until then is kept."""
  workdir = tmp_path / 'run'
  with pytest.raises(errors.UserError, match=r'\d{12,} bytes') as raised:
    in_process.run(workdir, *SHORT, '--config.eval_batch_size=1000000000')
  assert 'eval_batch_size 1000000000' in str(raised.value)
  row = json.loads((workdir / 'status.json').read_text())
  assert row['state'] == 'failed'
  assert row['message'] == str(raised.value)
