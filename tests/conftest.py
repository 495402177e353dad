"""Has all processes of a test run share compiled programs.

Many tests start processes that compile the same programs. JAX's persistent
cache, in a directory that is deleted at the end, compiles each of them once.
Most programs run for less time than LLVM needs to optimise them, so it does not
optimise; XLA's own passes, which tests are about, are unchanged.
"""

import os
import shutil
import tempfile

_CACHE = 'JAX_COMPILATION_CACHE_DIR'
_FAST_COMPILE = '--xla_backend_optimization_level=0'
_made = []


def pytest_configure():
  if _CACHE not in os.environ:  # else a worker, or set by the user
    _made.append(tempfile.mkdtemp(prefix='dnal_jax_tests_'))
    os.environ[_CACHE] = _made[0]
    os.environ['JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS'] = '0.2'
    os.environ.setdefault('XLA_FLAGS', _FAST_COMPILE)


def pytest_unconfigure():
  for directory in _made:
    shutil.rmtree(directory, ignore_errors=True)
    del os.environ[_CACHE]
