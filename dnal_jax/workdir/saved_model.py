"""Loads the final network of a run."""

import os
from typing import Any

import jax

from dnal_jax import errors, models, paths, trees
from dnal_jax.parallel import mesh
from dnal_jax.workdir import architecture, weights


def load(workdir: str | os.PathLike) -> tuple[models.Network, dict[str, Any]]:
  """(net, variables) of a finished run, without any training code.

  `net.apply(variables, images)` gives logits [B, classes] float32 for images
  [B, H, W, C] float32 that are normalised by the config's data.mean and
  data.std.

  Raises:
    UserError: a file is missing, damaged, or does not fit the others; or JAX
      cannot use a platform that JAX_PLATFORMS names.
  """
  workdir = paths.local('workdir', workdir)
  if not workdir.is_dir():
    raise errors.UserError(f"'{workdir}' is not a directory")
  mesh.check_platforms()
  net, image_shape = architecture.read(workdir / 'architecture.json')
  want = architecture.form(net, image_shape).arrays
  arrays = weights.read(workdir, want)
  return net, trees.unflatten(jax.tree.map(jax.numpy.asarray, arrays))
