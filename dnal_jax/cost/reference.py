"""Parameters and operations as the paper's tables count them.

Deviation (theirs): they follow gates, not the flow of data, and ignore that a
shortcut can keep a channel alive whose gate is closed. They are therefore
reported beside the exact counts and never used to build anything.
"""

import re

from dnal_jax import nn
from dnal_jax.graph import walk

# The authors' script leaves out the BatchNorm of ResNet50's shortcut
# convolutions, and only those: with them its 25.55 M would be 25.56 M.
_NORM_UNCOUNTED = re.compile(r'.*/downsample')


def reference_counts(full: walk.Graph, keep: nn.Keep) -> tuple[int, int]:
  """(params, operations) of one image, as the authors' script counts them.

  Computed from the graph of the full network and the channels to keep:

  * The outputs of a gated layer are the channels that its gate keeps.
  * The inputs are the channels kept by the gate of the layer that wrote them:
    of the branch, for a residual sum; by any of the candidates' gates, for a
    sum of candidates (ours).
  * Layers without gate count in full, except for the classifier's inputs.
  * BatchNorm adds two parameters and, like a bias, one operation per output
    channel (not per pixel). BatchNorms of linear layers are left out.
  """
  params = operations = 0
  for path, layer in full.layers.items():
    masked = layer.out_gate is not None or path.startswith('head/')
    n_in = 1 if layer.in_ids is None else len(layer.in_ids)
    n_out = len(layer.out_ids)
    if masked and layer.in_ids is not None and layer.in_gates:
      total, kept = (
        len(set().union(*(ids[gate] for gate in layer.in_gates)))
        for ids in (full.gates, {**full.gates, **keep})
      )
      n_in = n_in * kept // total
    if layer.out_gate is not None:
      n_out = len(keep.get(layer.out_gate, full.gates[layer.out_gate]))
    weights = layer.kernel**2 * n_in * n_out
    norm = layer.norm and not _NORM_UNCOUNTED.fullmatch(path)
    params += weights + n_out * (2 * norm + layer.bias)
    operations += weights * layer.positions + n_out * (norm + layer.bias)
  return params, operations
