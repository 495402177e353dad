"""Every mistake ends in one message with the fix, and damages nothing."""

import json
import re
import subprocess
import sys

from commands import ROOT, SHORT, fail, fail_here, result
from in_process import config, run
import pytest

from configs import vgg16_fashion_mnist
import dnal_jax
from dnal_jax import errors
from dnal_jax.workdir import layout, metrics_file, result_file


def refused(workdir, *flags, **kwargs):
  """The message of a run that must raise."""
  with pytest.raises(errors.UserError) as raised:
    run(workdir, *flags, **kwargs)
  return str(raised.value)


def test_folder_of_another_config(tmp_path):
  layout.write_config(tmp_path, config(*SHORT))
  other = '--config.seed=7', '--config.penalty=0.5'
  message = refused(tmp_path, *SHORT, *other)
  assert 'seed (folder: 0, now: 7)' in message
  assert 'penalty (folder: 0.04, now: 0.5)' in message
  assert 'batch_size' not in message
  (tmp_path / 'checkpoints').mkdir()
  (tmp_path / 'config.json').unlink()  # the folder may be anybody's
  assert 'has checkpoints but no config.json' in refused(tmp_path, *SHORT)


def test_damaged_metrics(tmp_path):
  (tmp_path / 'metrics.jsonl').write_text('{"epochs_done": 1}\nnonsense\n')
  message = refused(tmp_path, *SHORT)
  assert "metrics.jsonl', line 2 is damaged" in message


@pytest.mark.slow
def test_loss_that_is_not_a_number(tmp_path):
  flag = '--config.stages.warmup.train.weights.lr.base=1e30'
  message = refused(tmp_path / 'run', flag)
  assert "the loss is nan, not finite in stage 'warmup', step" in message
  assert 'there is no checkpoint yet' in message
  assert 'lower stages.warmup.train.*.lr.base' in message
  assert "{'weights': 1e+30}" in message
  assert not (tmp_path / 'run' / 'metrics.jsonl').read_text()


@pytest.mark.long
def test_going_back_to_a_checkpoint_with_half_the_rates(tmp_path, capsys):
  workdir = tmp_path / 'run'
  flags = (
    *(*SHORT, '--config.max_nan_restarts=30', '--config.checkpoint_steps=5'),
    '--config.stages.finetune.train.weights.lr.base=100.0',
  )
  run(workdir, *flags)
  printed = capsys.readouterr().out
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
    ('--config.oder=x', "unknown config key 'oder'; did you mean order?"),
    ('--config.rollbacks=2', "'rollbacks'; did you mean max_nan_restarts?"),
    ('--config.target.mac=0.5', "'target.mac'; did you mean target.macs? --"),
    ('--config.data.folder=x', 'read by configs for ImageNet: start from one'),
    (
      '--target.macs=0.5',
      'no flag --target.macs; did you mean --config.target',
    ),
    ('--config.seed=x', "config.seed=x: 'x' is not an integer"),
    ('--config.target.macs=5%', "target.macs=5%: '5%' is not a number, suc"),
    ('--config.data.crop_pad=-1', 'data.crop_pad is -1'),
  ],
)
def test_bad_flags(flag, message, tmp_path):
  assert message in fail_here(tmp_path / 'run', flag)
  assert not list(tmp_path.iterdir())


def test_bad_commands(tmp_path):
  assert 'nope.py' in fail(tmp_path, config='configs/nope.py')
  message = fail(tmp_path, '--config.data.flip', 'False')
  assert "unexpected argument 'False'; flags are --key=value" in message
  broken = tmp_path.with_suffix('.py')
  broken.write_text('def get_config(:')
  assert 'SyntaxError' in fail(tmp_path, config=broken)
  message = fail(tmp_path, config='configs/quickstart.py:basline')
  assert "unknown variant 'basline'" in message
  assert not list(tmp_path.iterdir())


def test_a_run_that_cannot_begin_writes_nothing(tmp_path):
  workdir = tmp_path / 'run'
  message = refused(workdir, '--config.batch_size=100000')
  assert 'batch_size is 100000, but there are 1140 images' in message
  message = refused(
    workdir, f'--config.data.dir={tmp_path}/none', of=vgg16_fashion_mnist
  )
  assert f"data.dir is '{tmp_path}/none', which is not a directory" in message
  assert not list(tmp_path.iterdir())


def test_workdir_that_is_a_file(tmp_path):
  (tmp_path / 'file').write_text('precious')
  assert 'cannot be written' in refused(tmp_path / 'file')
  assert (tmp_path / 'file').read_text() == 'precious'


ARCHITECTURE = {
  'schema_version': 1,
  'network': {'name': 'vgg7_digits', 'width': 1.0, 'classes': 10},
  'image_shape': [8, 8, 1],
  'gates': {f'gate{i}_{j}': [0, 5] for i in (1, 2, 3) for j in (1, 2)},
}


@pytest.mark.parametrize(
  ('change', 'message'),
  [
    ({'schema_version': 9}, 'schema_version 9; this release reads 1 and 2'),
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
  (tmp_path / 'config.json').write_text('{}')
  with pytest.raises(errors.UserError, match='a run that has not finished; th'):
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
  with pytest.raises(errors.UserError, match='line 2 is damaged') as raised:
    metrics_file.MetricsFile(tmp_path, 1)
  assert str(path) in str(raised.value)
  assert 'delete the line' in str(raised.value)


def test_metrics_that_are_not_finite_are_kept(tmp_path):
  """A validation loss may be NaN; a training loss may not."""
  path = tmp_path / 'metrics.jsonl'
  row = '{"epochs_done": 1, "validation_loss": NaN}\n'
  path.write_text(row)
  metrics_file.MetricsFile(tmp_path, 1)
  assert path.read_text() == row


def test_commands_print_one_line(tmp_path):
  """No traceback: of a run that has finished, and of the summary."""
  layout.write_config(tmp_path, config())
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
def test_a_damaged_result_is_made_again_once_it_is_deleted(tmp_path):
  run(tmp_path, *SHORT)
  whole = result(tmp_path)
  (tmp_path / 'result.json').write_text('{}')
  message = refused(tmp_path, *SHORT)
  assert 'delete it, and the same command makes it again' in message
  (tmp_path / 'result.json').unlink()
  run(tmp_path, *SHORT)
  assert result(tmp_path) == whole
