"""What the text of the README and of docs/ names exists: flags, files, links.

`make docs` checks the site: links between its pages, and docstrings.
"""

import json
import re

from commands import ROOT
from examples import PAGES, check_module, inline_code
import pytest
from test_imports import FLAT, ROOMS

ADDRESS = 'https://github.com/dnal-jax/dnal_jax'


def test_flags_in_the_text():
  """Those in backticks: of a config, of a command, of a script."""
  code = inline_code()
  overrides = [c for c in code if re.fullmatch(r'--config\.[\w.]+=\S+', c)]
  assert len(overrides) > 15
  plain = [c.replace('"', '') for c in overrides if 'VALUE' not in c]
  base = '--config=configs/mbv2_imagenet.py', '--workdir=DIR'
  targets = [c for c in plain if c.startswith('--config.target.')]
  check_module(
    'dnal_jax.main', [*base, *(c for c in plain if c not in targets)]
  )
  check_module('dnal_jax.main', [*base, *targets])
  sources = [
    *(ROOT / 'dnal_jax').glob('*.py'),
    ROOT / 'dnal_jax/compare/__main__.py',
    *(ROOT / 'benchmarks').glob('*'),
    *(ROOT / 'launch').glob('*'),
  ]
  text = '\n'.join(path.read_text() for path in sources if path.is_file())
  for one in code:
    for flag in re.findall(r'(?:^| )--([a-z_]+)(?=[ =]|$)', one):
      known = f"'{flag}'" in text or f'--{flag}' in text
      assert known or flag in ('config', 'check'), one


def test_files_in_the_text():
  for one in inline_code():
    match = re.fullmatch(r'(\.?/?[\w.]+/)+[\w.]+\.(py|sh|ipynb|yaml|md)', one)
    if match and not re.search(r'NAME|DIR|FILE', one):
      found = [r / one for r in (ROOT, ROOT / 'dnal_jax') if (r / one).exists()]
      assert found, one
  names = {p.name for p in (ROOT / 'configs').glob('*.py')}
  page = (ROOT / 'docs' / 'configs.md').read_text()
  listed = set(re.findall(r'`(\w+\.py)`', page))
  assert listed == names


def anchors(path):
  prose = re.sub(r'^```.*?^```', '', path.read_text(), flags=re.M | re.S)
  titles = re.findall(r'^#+ (.+)$', prose, re.M)
  return {
    re.sub(r'[^\w -]', '', title.lower()).strip().replace(' ', '-')
    for title in titles
  }


@pytest.mark.parametrize('path', PAGES, ids=lambda p: p.name)
def test_links(path):
  """Of every page to files and headings of the project."""
  text = path.read_text()
  links = re.findall(r'\]\(\s*([^)\s]+)\s*\)', text)
  links += re.findall(r'^\[[^\]]+\]: (\S+)$', text, re.M)
  for link in links:
    target, _, anchor = link.partition('#')
    if target.startswith(ADDRESS):
      rest = re.sub(r'^/(blob|tree)/main/', '', target.removeprefix(ADDRESS))
      assert (ROOT / rest).exists(), link
    elif not target.startswith('https:'):
      file = path.parent / target if target else path
      assert file.exists(), link
      assert not anchor or anchor in anchors(file), link


def test_measured_figures_are_linked():
  text = '\n'.join(path.read_text() for path in PAGES)
  for path in (ROOT / 'docs' / 'results').iterdir():
    assert json.loads(path.read_text()), path
    assert f'results/{path.name}' in text, path


def test_package_table():
  """In docs/design.md: the rooms of `test_imports.py`, and all modules."""
  page = (ROOT / 'docs' / 'design.md').read_text()
  section = page.partition('## Packages')[2].partition('All may import')[0]
  rows = re.findall(r'^\| (\S+) \| (.+) \|(.*)\|$', section, re.M)[1:]
  rows = {row[0].strip('`/').removesuffix('.py'): row[1:] for row in rows}
  assert {
    room: set(filter(None, may.strip().split(', ')))
    for room, (_, may) in rows.items()
  } == ROOMS
  for room, (holds, _) in rows.items():
    files = (ROOT / 'dnal_jax' / room).glob('*.py')
    modules = {file.stem for file in files}
    modules |= {module for module, of in FLAT.items() if of == room}
    named = set(re.findall(r'`(\w+)(?:\.py)?`', holds)) | {room}
    assert modules - {'__init__', '__main__'} <= named, room


def test_readme_is_one_page_with_the_words_people_search_for():
  readme = (ROOT / 'README.md').read_text()
  assert len(readme.splitlines()) <= 150
  words = ' '.join(readme.split()).lower()
  for one in (
    *('channel pruning', 'width search', 'model compression'),
    *('neural architecture search', 'jax', 'flax', 'tpu'),
  ):
    assert one in words, one
