"""Every mistake ends in one message with the fix, and leaves things whole."""

import json
import re
import subprocess
import sys

from commands import ROOT, SHORT, fail, metrics, result, succeed
import pytest

from configs import quickstart
import dnal_jax
from dnal_jax import errors
from dnal_jax.workdir import layout, metrics_file, result_file


@pytest.mark.slow
def test_closing_everything_is_told_and_kept(tmp_path):
  workdir = tmp_path / 'run'
  flags = (*SHORT, '--config.penalty=30.0')
  for _ in range(2):  # and again from the kept checkpoint, at once
    told = fail(workdir, *flags)
    assert 'closed every channel of gate1_1' in told
    assert 'smaller penalty than 30' in told
  gates = json.loads((workdir / 'architecture.json').read_text())['gates']
  assert gates['gate1_1'] == []
  assert len(metrics(workdir)) == 3
  assert not (workdir / 'result.json').exists()
  assert not (workdir / 'model').exists()


@pytest.mark.slow
def test_folder_of_another_config(tmp_path):
  workdir = tmp_path / 'run'
  succeed(workdir, *SHORT)
  told = fail(workdir, *SHORT, '--config.seed=7', '--config.penalty=0.5')
  assert 'seed (folder: 0, now: 7)' in told
  assert 'penalty (folder: 0.04, now: 0.5)' in told
  assert 'batch_size' not in told
  (workdir / 'config.json').unlink()  # then whose is it?
  assert 'has checkpoints but no config.json' in fail(workdir, *SHORT)


def test_damaged_metrics(tmp_path):
  (tmp_path / 'metrics.jsonl').write_text('{"epochs_done": 1}\nnonsense\n')
  told = fail(tmp_path, *SHORT)
  assert "metrics.jsonl', line 2 is damaged" in told


def test_loss_that_is_not_a_number(tmp_path):
  flag = '--config.stages.warmup.train.weights.lr.base=1e30'
  told = fail(tmp_path / 'run', flag)
  assert "the loss is nan, not finite in stage 'warmup', step" in told
  assert 'there is no checkpoint yet' in told
  assert 'lower stages.warmup.train.*.lr.base' in told
  assert "{'weights': 1e+30}" in told
  assert not (tmp_path / 'run' / 'metrics.jsonl').read_text()


@pytest.mark.slow
def test_going_back_to_a_checkpoint_with_half_the_rates(tmp_path):
  workdir = tmp_path / 'run'
  flags = (
    *(*SHORT, '--config.max_nan_restarts=30', '--config.checkpoint_steps=5'),
    '--config.stages.finetune.train.weights.lr.base=100.0',
  )
  printed = succeed(workdir, *flags)
  back = re.findall(r'^with learning rates times (\S+), because', printed, re.M)
  assert back
  assert [float(factor) for factor in back] == [
    0.5**n for n in range(1, len(back) + 1)
  ]
  assert "not finite in stage 'finetune'" in printed
  assert result(workdir)['rollbacks'] == len(back)


@pytest.mark.parametrize(
  ('flag', 'message'),
  [
    ('--config.oder=x', 'Did you mean "order" instead of "oder"?'),
    ('--config.seed=x', 'config.seed=x'),
    ('--config.network.name=vgg17', "did you mean 'vgg16'?"),
    ('--config.data.name=digit', "did you mean 'digits'?"),
    ('--config.data.image=4', 'data.image is 4: too small'),
    ('--config.stages.warmup.epochs=-1', 'stages.warmup.epochs is -1'),
    ('--config.data.crop_pad=-1', 'data.crop_pad is -1'),
    (
      '--config.stages.finetune.train.weights.match=parms/.*',
      "stage 'finetune': pattern 'parms/.*' of group 'weights' matches nothing",
    ),
    ('--config.stages.warmup.train.weights.match=(', 'no regular expression'),
    ('--config.order=5', "it must list stages: ('warmup', 'search')"),
    ('--config.batch_size=100000', 'there are 1140 images to train on'),
  ],
)
def test_bad_flags(flag, message, tmp_path):
  assert message in fail(tmp_path / 'run', flag)
  assert not list(tmp_path.rglob('*.json*'))


def test_bad_commands(tmp_path):
  assert 'nope.py' in fail(tmp_path, config='configs/nope.py')
  told = fail(tmp_path, '--config.data.flip', 'False')
  assert "unexpected argument 'False'; flags are --key=value" in told
  broken = tmp_path.with_suffix('.py')
  broken.write_text('def get_config(:')
  assert 'SyntaxError' in fail(tmp_path, config=broken)
  told = fail(tmp_path, config='configs/quickstart.py:basline')
  assert "unknown variant 'basline'" in told
  assert not list(tmp_path.iterdir())


def test_workdir_that_is_a_file(tmp_path):
  (tmp_path / 'file').write_text('precious')
  assert 'cannot be written' in fail(tmp_path / 'file')
  assert (tmp_path / 'file').read_text() == 'precious'


def test_missing_data_directory(tmp_path):
  told = fail(
    tmp_path / 'run',
    f'--config.data.dir={tmp_path}/none',
    config='configs/vgg16_fashion_mnist.py',
  )
  assert f"data.dir is '{tmp_path}/none', which is not a directory" in told
  assert not (tmp_path / 'run').exists()


ARCHITECTURE = {
  'schema_version': 1,
  'network': {'name': 'vgg7_digits', 'width': 1.0, 'classes': 10},
  'image_shape': [8, 8, 1],
  'gates': {f'gate{i}_{j}': [0, 5] for i in (1, 2, 3) for j in (1, 2)},
}


@pytest.mark.parametrize(
  ('change', 'message'),
  [
    ({'schema_version': 9}, 'schema_version 9; this release reads 1'),
    ({'network': 3}, 'not a valid architecture.json'),
    ({'gates': {}}, "the file has no gate 'gate1_1'"),
    ({'gates': {**ARCHITECTURE['gates'], 'x': []}}, "no gate 'x'"),
    ({'gates': {**ARCHITECTURE['gates'], 'gate1_1': [5, 0]}}, 'ascending'),
    ({'gates': {**ARCHITECTURE['gates'], 'gate1_1': [32]}}, 'outside 0 to 31'),
    ({'gates': {**ARCHITECTURE['gates'], 'gate1_1': ['a']}}, 'integers'),
  ],
)
def test_damaged_architecture_is_refused(change, message, tmp_path):
  path = tmp_path / 'architecture.json'
  path.write_text(json.dumps({**ARCHITECTURE, **change}))
  with pytest.raises(errors.UserError, match=message):
    dnal_jax.load(tmp_path)


def test_missing_or_broken_files_are_named(tmp_path):
  with pytest.raises(errors.UserError, match='is not a directory'):
    dnal_jax.load(tmp_path / 'none')
  with pytest.raises(errors.UserError, match=r'architecture\.json'):
    dnal_jax.load(tmp_path)
  (tmp_path / 'architecture.json').write_text('{')
  with pytest.raises(errors.UserError, match='is not JSON'):
    dnal_jax.load(tmp_path)
  (tmp_path / 'architecture.json').write_text(json.dumps(ARCHITECTURE))
  with pytest.raises(errors.UserError, match='a run writes it when it finish'):
    dnal_jax.load(tmp_path)


# The other files that are read back.


@pytest.mark.parametrize(
  'content',
  [
    *(b'', b'null', b'[]', b'{}', b'\xff', b'{"config": 3}', b'{"config": []}'),
    b'{"config": ' + b'[' * 10**5 + b']' * 10**5 + b'}',
    b'{"config": {"seed": NaN}}',
    b'{"config": {}, "config": {}}',
  ],
  ids=range(10),
)
def test_damaged_config(content, tmp_path):
  path = tmp_path / 'config.json'
  path.write_bytes(content)
  with pytest.raises(errors.UserError, match=f"'{path}' is not .*restore it"):
    layout.check_config(tmp_path, {'seed': 0})


RESULT = {
  'network': 'vgg7_digits',
  'dataset': 'digits',
  'seed': 0,
  'baseline': dict.fromkeys(
    ('params', 'macs', 'reference_params', 'reference_macs'), 9
  ),
  'learned': None,
  'gates': {'total': 5, 'kept': None},
  'top1': {'final': 0.5},
  'compact_max_abs_diff': None,
  'test_top1': 0.25,
  'test_top5': None,
}


@pytest.mark.parametrize(
  'change',
  [
    {'baseline': None},
    {'baseline': {}},
    {'baseline': {**RESULT['baseline'], 'macs': '9'}},
    {'learned': 3},
    {'learned': {**RESULT['baseline'], 'macs': 'x'}},
    {'top1': []},
    {'top1': {'final': 'good'}},
    {'test_top1': 10**400},
    {'compact_max_abs_diff': [1]},
  ],
  ids=range(9),
)
def test_damaged_result(change, tmp_path):
  path = tmp_path / 'result.json'
  path.write_text(json.dumps(RESULT))
  assert result_file.read_result(path) == RESULT
  path.write_text(json.dumps({**RESULT, **change}))
  with pytest.raises(
    errors.UserError, match=f"'{path}' is not a .*; delete it"
  ):
    result_file.read_result(path)
  for content in ('[]', '3', '{}', '"text"'):
    path.write_text(content)
    with pytest.raises(errors.UserError, match='the same command makes it'):
      result_file.read_result(path)


@pytest.mark.parametrize(
  'line',
  [
    *(b'\xff', b'[' * 10**5, b'3', b'[]', b'{}', b'{"epochs_done": "1"}'),
    *(b'{"epochs_done": 1e999}', b'{"epochs_done": true}'),
    b'{"epochs_done": ' + b'9' * 5000 + b'}',
  ],
  ids=range(9),
)
def test_damaged_line_of_metrics(line, tmp_path):
  path = tmp_path / 'metrics.jsonl'
  path.write_bytes(b'{"epochs_done": 1}\n' + line + b'\n')
  with pytest.raises(errors.UserError, match='line 2 is damaged') as told:
    metrics_file.Metrics(tmp_path, 1, events=False)
  assert str(path) in str(told.value)
  assert 'delete the line' in str(told.value)


def test_metrics_that_are_no_numbers_are_kept(tmp_path):
  """A validation loss may be NaN, as long as that of training is not."""
  path = tmp_path / 'metrics.jsonl'
  row = '{"epochs_done": 1, "validation_loss": NaN}\n'
  path.write_text(row)
  metrics_file.Metrics(tmp_path, 1, events=False)
  assert path.read_text() == row


def test_commands_tell_it_in_one_message(tmp_path):
  """A run that has finished, and the summary; no traceback."""
  config = quickstart.get_config().to_dict()
  layout.write_config(tmp_path, config)
  (tmp_path / 'result.json').write_text('{"network": 3}')
  assert 'is not a valid result.json' in fail(tmp_path)
  path = tmp_path / 'architecture.json'
  wide = {**ARCHITECTURE['network'], 'width': 1e9}
  path.write_text(json.dumps({**ARCHITECTURE, 'network': wide}))
  done = subprocess.run(
    (sys.executable, '-m', 'dnal_jax.summary', f'--architecture={path}'),
    cwd=ROOT,
    capture_output=True,
    text=True,
    check=False,
  )
  assert done.returncode == 2
  assert done.stderr.startswith(f"error: '{path}': network.width is 1000000000")
  assert len(done.stderr.splitlines()) == 1


@pytest.mark.slow
def test_a_damaged_result_comes_back_as_the_message_says(tmp_path):
  succeed(tmp_path, *SHORT)
  whole = result(tmp_path)
  (tmp_path / 'result.json').write_text('{}')
  told = fail(tmp_path, *SHORT)
  assert 'delete it, and the same command makes it again' in told
  (tmp_path / 'result.json').unlink()
  succeed(tmp_path, *SHORT)
  assert result(tmp_path) == whole
