"""config.json names the library versions of every start of a run."""

import json

from in_process import config
import pytest

from dnal_jax import errors
from dnal_jax.workdir import layout


def test_versions_of_a_later_start_are_recorded(tmp_path, capsys):
  """Once, if they differ from those of the start before."""
  path = tmp_path / 'config.json'
  layout.write_config(tmp_path, config())
  first = json.loads(path.read_text())
  assert first.keys() == {'config', 'versions', 'git'}
  layout.write_config(tmp_path, config())
  assert json.loads(path.read_text()) == first
  assert capsys.readouterr().out == ''
  now = {key: first[key] for key in ('versions', 'git')}
  first['versions'] = {**first['versions'], 'jax': '0.1', 'numpy': '0.2'}
  path.write_text(json.dumps(first))
  for out in (f"jax '0.1' -> '{now['versions']['jax']}', numpy '0.2' -> ", ''):
    layout.write_config(tmp_path, config())
    assert json.loads(path.read_text()) == {**first, 'resumed_with': [now]}
    printed = capsys.readouterr().out
    assert out in printed
    assert len(printed.splitlines()) == bool(out)
  del first['versions']  # the folder of an early version, or somebody's
  path.write_text(json.dumps({**first, 'resumed_with': [{'git': 'abc'}]}))
  layout.write_config(tmp_path, config())
  assert "git 'abc' -> " in capsys.readouterr().out
  assert json.loads(path.read_text())['resumed_with'] == [{'git': 'abc'}, now]


@pytest.mark.parametrize(
  'change',
  [
    *({'versions': 3}, {'resumed_with': 3}, {'resumed_with': [3]}),
    {'resumed_with': [{'versions': 'x'}]},
  ],
  ids=range(4),
)
def test_damaged_versions(change, tmp_path):
  layout.write_config(tmp_path, config())
  path = tmp_path / 'config.json'
  damaged = json.dumps({**json.loads(path.read_text()), **change})
  path.write_text(damaged)
  with pytest.raises(errors.UserError, match=f"'{path}' is not .*restore it"):
    layout.write_config(tmp_path, config())
  assert path.read_text() == damaged
