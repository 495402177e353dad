"""Has all processes of a test run share compiled programs.

Many tests start processes that compile the same programs. JAX's persistent
cache, in a directory that is deleted at the end, compiles each of them once.
Most programs run for less time than LLVM needs to optimise them, so it does not
optimise; XLA's own passes, which tests are about, are unchanged.
"""

import os
import shutil
import signal
import tempfile

import pytest

_CACHE = 'JAX_COMPILATION_CACHE_DIR'
_FAST_COMPILE = '--xla_backend_optimization_level=0'
_made = []


def pytest_configure():
  # A script that starts pytest in the background lets it, and the processes of
  # tests, ignore SIGINT.
  if signal.getsignal(signal.SIGINT) == signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)
  if _CACHE not in os.environ:  # else a worker, or set by the user
    _made.append(tempfile.mkdtemp(prefix='dnal_jax_tests_'))
    os.environ[_CACHE] = _made[0]
    os.environ['JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS'] = '0.2'
    os.environ.setdefault('XLA_FLAGS', _FAST_COMPILE)


@pytest.hookimpl(trylast=True)
def pytest_collection_modifyitems(config, items):
  """Fails if pytest-xdist ignores groups, which would make fixtures twice."""
  if config.getoption('loadgroup', False):
    for item in items:
      grouped = next(item.iter_markers('xdist_group'), None)
      if grouped and '@' not in item.nodeid:
        raise pytest.UsageError(
          f"{item.nodeid}: pytest-xdist ignores its group '{grouped.args[0]}'"
          f' in pytest {pytest.__version__}; install an earlier one'
        )


def pytest_unconfigure():
  for directory in _made:
    shutil.rmtree(directory, ignore_errors=True)
    del os.environ[_CACHE]
