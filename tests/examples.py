"""The examples of the README and of docs/, and what in a command can be checked
without running it: its module or file, its flags, its config and overrides."""

import importlib
import os
import pathlib
import re
import shlex
import types
from typing import NamedTuple
from unittest import mock

from commands import ROOT, run_here

from dnal_jax.config import run_config

PAGES = (
  ROOT / 'README.md',
  ROOT / 'RESULTS.md',
  *sorted((ROOT / 'docs').glob('*.md')),
)
LANGUAGES = ('sh', 'python', 'text')
# What an example has the reader fill in.
PLACEHOLDERS = {
  'LAMBDA': '0.04',
  'SEED': '0',
  'WIDTH': '0.1',
  'SLICE': 'v5e:4x4',
  'configs/NAME.py': 'configs/quickstart.py',
  'N': '64',
  'FILE': 'configs/quickstart.py',
  'residual.py': 'configs/mbv2_imagenet.py',  # which it begins with
}


class Example(NamedTuple):
  """A fenced block of a page."""

  page: str
  line: int  # of its first line
  language: str
  text: str

  def __str__(self):
    return f'{self.page}:{self.line}'


def page_examples(path: pathlib.Path) -> list[Example]:
  """The fenced blocks of a page; fails for code that is not in one."""
  found, block, start = [], None, 0
  page = str(path.relative_to(ROOT))
  for number, line in enumerate(path.read_text().splitlines(), 1):
    if line.startswith('```'):
      if block is None:
        language = line.removeprefix('```')
        assert language in LANGUAGES, f'{page}:{number}: fence of {language!r}'
        block, start = [], number + 1
      else:
        found.append(Example(page, start, language, '\n'.join(block) + '\n'))
        block = None
    elif block is not None:
      block.append(line)
    else:
      assert not re.match(r' {4}(?! )\S', line) or line.lstrip()[0] in '*-', (
        f'{page}:{number}: code outside of a fence'
      )
  assert block is None, f'{page}: a fence is not closed'
  return found


def all_examples(language: str) -> list[Example]:
  return [
    example
    for path in PAGES
    for example in page_examples(path)
    if example.language == language
  ]


def all_commands() -> dict[str, Example]:
  """{command: the first example that has it}; continued lines are joined."""
  found = {}
  for example in all_examples('sh'):
    for line in example.text.replace('\\\n', ' ').splitlines():
      if line.strip():
        found.setdefault(' '.join(line.split()), example)
  return found


def inline_code() -> set[str]:
  """What the pages have in backticks outside of fences."""
  found = set()
  for path in PAGES:
    prose = re.sub(r'^```.*?^```', '', path.read_text(), flags=re.M | re.S)
    found |= {' '.join(c.split()) for c in re.findall(r'`([^`]+)`', prose)}
  return found


def filled_in(command: str, folder: pathlib.Path) -> list[str]:
  """The words of a command, with its placeholders filled in; `folder` stands
  for FOLDER."""
  words = []
  for word in shlex.split(command):
    for name, value in {**PLACEHOLDERS, 'FOLDER': str(folder)}.items():
      word = re.sub(rf'(?<![\w/]){re.escape(name)}(?![\w/])', value, word)
    words.append(word)
  return words


def check_command(command: str, folder: pathlib.Path) -> None:
  """Fails if a command names a module, file, flag, config key, variable, make
  target or extra that does not exist, or a value that is refused."""
  words, variables = filled_in(command, folder), {}
  while words and re.match(r'[A-Z_]+=', words[0]):
    name, _, variables[name] = words.pop(0).partition('=')
  match words:
    case ['python', '-m', module, *arguments]:
      check_module(module, arguments)
    case ['python', script, *arguments] if script.startswith('benchmarks/'):
      check_known_flags(script, arguments)
    case ['sbatch', script, *arguments] | [script, *arguments] if (
      script.startswith(('launch/', 'benchmarks/'))
    ):
      check_script(script, arguments, variables)
    case ['make', *targets]:
      check_targets(targets)
    case ['pip', 'install', *arguments]:
      check_requirements(arguments)
    case ['git', 'clone', address]:
      assert f'"{address}"' in (ROOT / 'pyproject.toml').read_text()
    case ['cd', name]:
      assert name == 'dnal_jax'
    case ['export', setting]:
      assert '=' in setting
    case _:
      raise AssertionError(f'nothing is known about {command!r}')


def check_module(name: str, arguments: list[str]) -> None:
  """Parses the flags of a command, and its config with all overrides."""
  module = importlib.import_module(name)
  if hasattr(module, '__path__'):
    module = importlib.import_module(f'{name}.__main__')
  config = None

  def body(argv):
    nonlocal config
    del argv
    if 'config' in module.FLAGS and module.FLAGS['config'].value is not None:
      config = module.FLAGS['config'].value.to_dict()

  command = types.SimpleNamespace(__name__=name, body=body, FLAGS=module.FLAGS)
  ended = run_here(command, *arguments)
  assert ended.code == 0, ended.err
  if name == 'dnal_jax.main' and '--list-overrides' not in arguments:
    given = {word.partition('=')[0] for word in arguments}
    assert {'--config', '--workdir'} <= given, arguments
  if config is not None:
    # Not traced, as that takes seconds: the check of a run's parts against
    # each other, which tests of all configs have.
    with mock.patch.object(run_config, '_check_run'):
      run_config.parse_config(config)


def check_known_flags(script: str, arguments: list[str]) -> None:
  """Fails if the text of a script does not name a flag."""
  text = (ROOT / script).read_text()
  known = set(re.findall(r'--[a-z_]+', text))
  for word in arguments:
    if word.startswith('--'):
      assert word.partition('=')[0] in known, f'{script} has no {word}'


def check_script(
  script: str, arguments: list[str], variables: dict[str, str]
) -> None:
  """Of launch/: its variables, and the flags of dnal_jax.main after --."""
  assert os.access(ROOT / script, os.X_OK), f'{script} cannot be executed'
  text = (ROOT / script).read_text()
  for name in variables:
    assert f'{name}=${{{name}' in text, f'{script} has no setting {name}'
  own, flags = arguments, []
  if '--' in arguments:
    split = arguments.index('--')
    own, flags = arguments[:split], arguments[split + 1 :]
  check_known_flags(script, own)
  if 'CONFIG' in variables:
    run = f'--config={variables["CONFIG"]}', '--workdir=DIR'
    check_module('dnal_jax.main', [*run, *flags])


def check_targets(targets: list[str]) -> None:
  makefile = (ROOT / 'Makefile').read_text()
  for target in targets:
    assert re.search(rf'^{target}:', makefile, re.M), f'no make {target}'


def check_requirements(arguments: list[str]) -> None:
  project = (ROOT / 'pyproject.toml').read_text()
  for word, following in zip(arguments, [*arguments[1:], ''], strict=True):
    if word == '-r':
      assert (ROOT / following).is_file(), following
    extras = re.fullmatch(r'\.\[([\w,]+)\]', word)
    for extra in extras[1].split(',') if extras else ():
      assert re.search(rf'^{extra} = \[', project, re.M), word
