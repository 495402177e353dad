"""Files and folders of this machine that the user names, and the user's own.

A run needs a local file system (which may be mounted): it locks its folder,
replaces files by renaming them, and resumes from what it reads back. A URL is
therefore refused before anything is made, but for data sets, which
tensorflow-datasets reads by itself.
"""

import os
import pathlib
import re

from dnal_jax import errors

# Of a string, or of what pathlib makes of one: it drops the second slash.
_URL = re.compile(r'[A-Za-z][\w+.-]+:/')


def local(key: str, given: str | os.PathLike) -> pathlib.Path:
  """The path that the user has given as `key`; ~ and ~NAME are expanded.

  Raises:
    UserError: it is a URL, or there is no such home directory.
  """
  text = os.fspath(given)
  if _URL.match(text):
    raise errors.UserError(
      f"{key} is '{text}', a URL; name a local path, such as one where the"
      ' bucket is mounted (by gcsfuse, for example), or copy the files'
    )
  path = os.path.expanduser(text)
  if path.startswith('~'):
    raise errors.UserError(
      f"{key} is '{text}', but there is no such home directory; set HOME, or"
      ' name the path in full (./~ for a file of that name)'
    )
  return pathlib.Path(path)


def cache_dir() -> pathlib.Path | None:
  """~/.cache/dnal_jax, or dnal_jax in XDG_CACHE_HOME; None for a user without a
  home directory."""
  cache = os.environ.get('XDG_CACHE_HOME') or '~/.cache'
  path = os.path.expanduser(cache)
  return None if path.startswith('~') else pathlib.Path(path, 'dnal_jax')
