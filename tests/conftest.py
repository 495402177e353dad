"""What all tests share: compiled programs, kept for the session.

Runs of the command line start many processes that compile the same programs;
JAX's own cache, in a directory that goes with the session, spares them that.
And most programs run for less time than they are compiled, so LLVM is asked to
optimise little: XLA's own passes, which the tests are about, are as always.
"""

import os
import shutil
import tempfile

_CACHE = 'JAX_COMPILATION_CACHE_DIR'
_FAST = '--xla_backend_optimization_level=1'
_made = []


def pytest_configure():
  if _CACHE not in os.environ:  # else a worker, or the user's own
    _made.append(tempfile.mkdtemp(prefix='dnal_jax_tests_'))
    os.environ[_CACHE] = _made[0]
    os.environ['JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS'] = '0.2'
    os.environ.setdefault('XLA_FLAGS', _FAST)


def pytest_unconfigure():
  for directory in _made:
    shutil.rmtree(directory, ignore_errors=True)
    del os.environ[_CACHE]
