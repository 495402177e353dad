"""The arithmetic behind the paper's tables.

It follows gates and not data flow (Deviation of theirs: it ignores that a
shortcut may keep alive what a gate has closed), so it is reported beside the
exact counts and never used to build anything.
"""

import re

from dnal_jax import nn
from dnal_jax.graph import walk

# The authors' script forgets the BatchNorm of ResNet50's shortcut
# convolutions, and only those: with them its 25.55 M would be 25.56 M.
_NORM_UNCOUNTED = re.compile(r'.*/downsample')


def reference_counts(whole: walk.Graph, keep: nn.Keep) -> tuple[int, int]:
  """(params, operations) as the authors' script counts them, from the walk
  over the full network and the channels kept.

  A gated layer counts only its gate's open channels as outputs; its inputs are
  those of the gate that wrote last (of a residual sum, the branch's; of a sum
  of candidates, ours: those that any of their gates has open). Layers
  without a gate count whole, except the classifier's inputs. BatchNorm adds
  two parameters and, like a bias, one operation per output channel (not per
  pixel); BatchNorms of linear layers are left out.
  """
  params = operations = 0
  for path, site in whole.sites.items():
    masked = site.out_gate is not None or path.startswith('head/')
    n_in = 1 if site.ins is None else len(site.ins)
    n_out = len(site.outs)
    if masked and site.ins is not None and site.in_gates:
      have, left = (
        len(set().union(*(ids[gate] for gate in site.in_gates)))
        for ids in (whole.gates, {**whole.gates, **keep})
      )
      n_in = n_in * left // have
    if site.out_gate is not None:
      n_out = len(keep.get(site.out_gate, whole.gates[site.out_gate]))
    weights = site.kernel**2 * n_in * n_out
    norm = site.norm and not _NORM_UNCOUNTED.fullmatch(path)
    params += weights + n_out * (2 * norm + site.bias)
    operations += weights * site.positions + n_out * (norm + site.bias)
  return params, operations
