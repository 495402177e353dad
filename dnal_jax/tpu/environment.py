"""Environment variables that libtpu reads when JAX loads it."""

from collections.abc import MutableMapping
import glob

# Without them, libtpu looks for a slice that is not there and prints what it
# did not find to standard error. The type does not matter.
WITHOUT_TPU = {
  'TPU_ACCELERATOR_TYPE': 'v5litepod-16',
  'TPU_WORKER_HOSTNAMES': 'localhost',
}
_DEVICES = '/dev/accel*', '/dev/vfio/[0-9]*'
# `import jax` sets these two on every machine that has libtpu.
_SET_BY_JAX = {'TPU_LIBRARY_PATH', 'TPU_SKIP_MDS_QUERY'}


def silence_libtpu(environ: MutableMapping[str, str]) -> None:
  """Keeps libtpu silent on a machine without a TPU.

  JAX loads libtpu wherever it is installed (such as for the dry run), and
  libtpu then logs five lines about the TPU that it cannot find. Which platform
  JAX chooses does not change. Does nothing where there is a TPU device, where
  any variable about TPUs is set, or where JAX is asked to use a TPU.

  Call it before JAX initialises its backends; `import jax` may come first.
  """
  about_tpus = any(
    name.startswith('TPU_') and name not in _SET_BY_JAX for name in environ
  )
  asked_for = 'JAX_FORCE_TPU_INIT' in environ or 'tpu' in environ.get(
    'JAX_PLATFORMS', ''
  ).split(',')
  if not (about_tpus or asked_for or any(map(glob.glob, _DEVICES))):
    environ.update(WITHOUT_TPU)
