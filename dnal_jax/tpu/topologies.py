"""TPU chips as published, slices of them, and what bounds a step.

Sources, read in 2026: the tables "System architecture" of Google's pages
docs.cloud.google.com/tpu/docs/v4, /v5e, /v5p and /v6e.
"""

from collections.abc import Mapping
import dataclasses
import importlib.util
import os
import re
from typing import Any

import jax
from jax.experimental import topologies

from dnal_jax import errors

EXAMPLES = 'v5e:4x4, v6e:2x4, v5p:2x2x1, v4:2x2x2'
# What libtpu is told before it starts: not to ask a cloud's metadata server
# where it is, but here (the type is of no consequence: a slice is named later);
# not to refuse if another process has it loaded, as nobody has a chip; and not
# to talk.
_ENVIRONMENT = {
  'TPU_SKIP_MDS_QUERY': '1',
  'TPU_ACCELERATOR_TYPE': 'v5litepod-16',
  'TPU_WORKER_HOSTNAMES': 'localhost',
  'ALLOW_MULTIPLE_LIBTPU_LOAD': '1',
  'TPU_MIN_LOG_LEVEL': '3',
  'TPU_STDERR_LOG_LEVEL': '3',
}


@dataclasses.dataclass(frozen=True)
class Chip:
  """One chip, which is one device of JAX."""

  # Bytes. The pages write GB for some; 16, 32 and 95 are powers of two times
  # whole numbers, as in GiB. Programs get a little less.
  hbm: int
  flops: float  # a second, of bfloat16: the peak
  bandwidth: float  # of HBM, bytes a second
  # Bytes a second that a chip can send on all its links: half of what the
  # pages call bidirectional.
  interconnect: float
  megacore: bool = False  # two cores that libtpu must be told are one device


_GIB = 1 << 30
CHIPS = {
  # 275 TFLOP/s, 32 GiB at 1200 GB/s. The page has no speed of links, but
  # all-reduces at 1.1 PB/s in a pod of 4,096.
  'v4': Chip(32 * _GIB, 275e12, 1200e9, 1.1e15 / 4096, megacore=True),
  # 197 TFLOP/s, 16 GB at 819 GB/s (today's page: 800 GiB/s), links of 400 GB/s
  # both ways; all-reduces at 51.2 TB/s in a pod of 256, 200 GB/s each.
  'v5e': Chip(16 * _GIB, 197e12, 819e9, 200e9),
  # 459 TFLOP/s, 95 GiB at 2765 GB/s, links of 1200 GB/s both ways.
  'v5p': Chip(95 * _GIB, 459e12, 2765e9, 600e9),
  # 918 TFLOP/s, 32 GB at 1638 GB/s, links of 800 GB/s both ways; all-reduces
  # at 102.4 TB/s in a pod of 256, 400 GB/s each.
  'v6e': Chip(32 * _GIB, 918e12, 1638e9, 400e9),
}


def slice_of(topology: str) -> tuple[Chip, Any]:
  """The chip of a slice such as 'v5e:4x4', and its devices, to compile for.

  Nothing is attached. JAX itself is put on the CPU of this process.

  Raises:
    UserError: there is no such slice, or no libtpu to ask.
  """
  named = re.fullmatch(r'(\w+):(\d+(?:x\d+)+)', topology)
  if not named:
    raise errors.UserError(
      f"--topology is '{topology}'; it must be a chip and the sides of a slice"
      f' of them, such as {EXAMPLES}'
    )
  if named[1] not in CHIPS:
    hint = errors.did_you_mean(named[1], CHIPS)
    raise errors.UserError(
      f"--topology is '{topology}' of an unknown chip '{named[1]}'{hint}"
    )
  if importlib.util.find_spec('libtpu') is None:
    raise errors.UserError(
      "compiling for a TPU needs libtpu in jax's own release of it: pip install"
      f" 'jax[tpu]=={jax.__version__}' (Linux, x86_64)"
    )
  os.environ.update(_ENVIRONMENT)
  jax.config.update('jax_platforms', 'cpu')
  chip, options = CHIPS[named[1]], {}
  if chip.megacore:
    options['chip_config_name'] = 'megacore'
  if set(named[2].split('x')) == {'1'}:  # else it asks for a whole host's
    options['chips_per_host_bounds'] = [1, 1, 1]
  try:
    described = topologies.get_topology_desc(
      platform='tpu', topology_name=topology, **options
    )
  except jax.errors.JaxRuntimeError as error:
    raise errors.UserError(
      f"--topology is '{topology}', which libtpu does not know"
      f' ({str(error).splitlines()[0]}); there are, for example, {EXAMPLES}'
    ) from error
  return chip, described.devices


def bounds(
  chip: Chip,
  chips: int,
  *,
  macs: int,
  bytes_accessed: float,
  all_reduced: int,
) -> Mapping[str, float]:
  """Seconds of a step by each of three things that it cannot do faster.

  compute: 2 operations a mac over the peaks of all chips. On a TPU, float32
    convolutions are multiplied in bfloat16 by default, so it is their peak
    too. No real program reaches it: channels are padded to 8 and 128.
  memory: the bytes that a chip reads and writes over its bandwidth. They are
    the compiler's own estimate. It counts what stays on the chip between two
    operations like what goes through HBM (seen: ten times the bytes of a
    program that keeps all its maps on the chip), so a step of few images a
    chip can be faster than this: the only one of the three that is no bound.
  all_reduce: 2 (n - 1) / n times the bytes that n chips sum up, the least that
    each must send, on all of its links at once. Latency, of which many small
    sums have more, is not in it.

  The largest is the step's if all three run beside each other.
  """
  return {
    'compute': 2 * macs / (chips * chip.flops),
    'memory': bytes_accessed / chip.bandwidth,
    'all_reduce': 2 * all_reduced * (chips - 1) / chips / chip.interconnect,
  }
