"""TPU chips as published, slices of them, and bounds of a step's time.

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
from dnal_jax.tpu import environment

EXAMPLES = 'v5e:4x4, v6e:2x4, v5p:2x2x1, v4:2x2x2'
# Read by libtpu when it starts. Together they keep it from asking a cloud's
# metadata server for its topology, let it start while another process has it
# loaded (no chip is used), and silence it.
_ENVIRONMENT = {
  **environment.WITHOUT_TPU,
  'TPU_SKIP_MDS_QUERY': '1',
  'ALLOW_MULTIPLE_LIBTPU_LOAD': '1',
  'TPU_MIN_LOG_LEVEL': '3',
  'TPU_STDERR_LOG_LEVEL': '3',
}


@dataclasses.dataclass(frozen=True)
class Chip:
  """One chip, which is one JAX device."""

  # Bytes. Some pages write GB; the numbers (16, 32, 95) are those of GiB. The
  # compiler leaves slightly less to programs.
  hbm: int
  flops: float  # peak bfloat16 operations per second
  bandwidth: float  # of HBM, bytes per second
  # Bytes per second that a chip can send on all its links: half of the
  # published bidirectional bandwidth.
  interconnect: float
  megacore: bool = False  # two cores form one device; libtpu needs an option


_GIB = 1 << 30
CHIPS = {
  # 275 TFLOP/s, 32 GiB at 1200 GB/s. The page gives no speed of links, only
  # all-reduces at 1.1 PB/s in a pod of 4,096.
  'v4': Chip(32 * _GIB, 275e12, 1200e9, 1.1e15 / 4096, megacore=True),
  # 197 TFLOP/s, 16 GB at 819 GB/s (today's page: 800 GiB/s), links of 400 GB/s
  # bidirectional; all-reduces at 51.2 TB/s in a pod of 256, 200 GB/s each.
  'v5e': Chip(16 * _GIB, 197e12, 819e9, 200e9),
  # 459 TFLOP/s, 95 GiB at 2765 GB/s, links of 1200 GB/s, bidirectional.
  'v5p': Chip(95 * _GIB, 459e12, 2765e9, 600e9),
  # 918 TFLOP/s, 32 GB at 1638 GB/s, links of 800 GB/s, bidirectional;
  # all-reduces at 102.4 TB/s in a pod of 256, 400 GB/s each.
  'v6e': Chip(32 * _GIB, 918e12, 1638e9, 400e9),
}


def slice_of(topology: str) -> tuple[Chip, Any]:
  """The chip of a slice such as 'v5e:4x4', and its devices to compile for.

  No TPU is needed. Sets the JAX platform of this process to 'cpu'.

  Raises:
    UserError: libtpu does not know the slice, or libtpu is not installed.
  """
  match = re.fullmatch(r'(\w+):(\d+(?:x\d+)+)', topology)
  if not match:
    raise errors.UserError(
      f"--topology is '{topology}'; it must be a chip and the sides of a slice,"
      f' such as {EXAMPLES}'
    )
  if match[1] not in CHIPS:
    hint = errors.did_you_mean(match[1], CHIPS)
    raise errors.UserError(
      f"--topology is '{topology}' with the unknown chip '{match[1]}'{hint}"
    )
  if importlib.util.find_spec('libtpu') is None:
    raise errors.UserError(
      'compiling for a TPU needs the libtpu of this JAX release: pip install'
      f" 'jax[tpu]=={jax.__version__}' (Linux, x86_64)"
    )
  os.environ.update(_ENVIRONMENT)
  jax.config.update('jax_platforms', 'cpu')
  chip, options = CHIPS[match[1]], {}
  if chip.megacore:
    options['chip_config_name'] = 'megacore'
  if set(match[2].split('x')) == {'1'}:  # the default is a whole host
    options['chips_per_host_bounds'] = [1, 1, 1]
  try:
    description = topologies.get_topology_desc(
      platform='tpu', topology_name=topology, **options
    )
  except jax.errors.JaxRuntimeError as error:
    raise errors.UserError(
      f"--topology is '{topology}', which libtpu does not know"
      f' ({str(error).splitlines()[0]}); examples are {EXAMPLES}'
    ) from error
  return chip, description.devices


def bounds(
  chip: Chip,
  chips: int,
  *,
  macs: int,
  bytes_accessed: float,
  all_reduced: int,
) -> Mapping[str, float]:
  """Seconds that each of three resources needs for one step.

  compute: 2 operations per mac over the peak of all chips. TPUs multiply
    float32 convolutions in bfloat16 by default, so this peak holds for both.
    No real program reaches it: channels are padded to 8 and 128.
  memory: the bytes that a chip reads and writes over its bandwidth, by the
    compiler's estimate. The estimate counts data that stays on the chip between
    two operations as if it went through HBM (observed: ten times the bytes of a
    program whose feature maps all stay on the chip). With few images per chip a
    step can therefore be faster than this: it is the only one of the three that
    is not a lower bound.
  all_reduce: 2 (n - 1) / n times the bytes summed over n chips, the least that
    each chip must send, on all its links at once. Excludes latency, which
    dominates for many small sums.

  If all three overlap perfectly, the largest is the time of the step.
  """
  return {
    'compute': 2 * macs / (chips * chip.flops),
    'memory': bytes_accessed / chip.bandwidth,
    'all_reduce': 2 * all_reduced * (chips - 1) / chips / chip.interconnect,
  }
