"""Searches from which no network can come end with what to change."""

import json

from commands import SHORT, metrics
from in_process import config, run
import pytest
from saved_folder import evaluated

import dnal_jax
from dnal_jax import errors
from dnal_jax.config import parse_config
from dnal_jax.data import memory, sources


def refused(workdir, *flags, **kwargs):
  """The message of a run that must raise."""
  with pytest.raises(errors.UserError) as raised:
    run(workdir, *flags, **kwargs)
  return str(raised.value)


@pytest.mark.slow
def test_closing_every_gate_is_refused_and_the_search_kept(tmp_path):
  workdir = tmp_path / 'run'
  for _ in range(2):  # the second time from the last checkpoint
    message = refused(workdir, *SHORT, '--config.penalty=30.0')
    assert 'every channel would be pruned of gate1_1' in message
    assert 'smaller penalty than 30' in message
    assert 'kept in the folder warmup/ of the run; search again in a new' in (
      message
    )
  gates = json.loads((workdir / 'architecture.json').read_text())['gates']
  assert gates['gate1_1'] == []
  assert len(metrics(workdir)) == 3
  assert not (workdir / 'result.json').exists()
  assert not (workdir / 'model').exists()


@pytest.mark.slow
def test_a_hopeless_search_ends_early_and_keeps_the_warmup(tmp_path):
  """After three epochs without a channel of a layer, not at its end; what the
  warm-up trained is a folder that loads."""
  workdir = tmp_path / 'run'
  for _ in range(2):  # the second time from the last checkpoint
    message = refused(
      workdir,
      '--config.stages.warmup.epochs=2',
      '--config.stages.search.epochs=8',
      '--config.penalty=30.0',
    )
    assert "stage 'search' ends early: for 3 epochs every channel of" in message
    assert 'gate1_1' in message
    assert 'the penalty, 30, may be too large' in message
    assert 'smaller penalty than 30, say 10' in message
  rows = metrics(workdir)
  assert len(rows) < 2 + 6
  assert not (workdir / 'architecture.json').exists()
  model = dnal_jax.load(workdir / 'warmup')
  assert model.class_names == tuple('0123456789')
  assert all((g['g'] == 1).all() for g in model.variables['gates'].values())
  data = parse_config(config()).data
  source = sources.open_source(data, seed=0, batch_size=64, eval_batch_size=297)
  logits = evaluated(model, source, 'validation')
  images = memory.load(data).validation
  top1 = (logits.argmax(1) == images.labels).mean()
  assert top1 == pytest.approx(rows[1]['validation_top1'], abs=1e-6)
