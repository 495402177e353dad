"""Loads the final network of a run, and predicts with it.

B batch, H height, W width, C channels.
"""

from collections.abc import Iterator, Mapping
import dataclasses
import functools
import os
import pathlib
from typing import Any, NamedTuple

import jax
import numpy as np

from dnal_jax import errors, models, paths, trees
from dnal_jax.data import Data, batches, is_streamed
from dnal_jax.data.preprocessing import Preprocessing
from dnal_jax.parallel import mesh
from dnal_jax.workdir import architecture, json_files, weights

BATCH = 32  # images of a batch on the device, at most


class Predictions(NamedTuple):
  """What a network says about B images."""

  logits: np.ndarray  # [B, classes] float32
  probabilities: np.ndarray  # [B, classes] float32, their softmax
  class_names: tuple[str, ...]  # by label; numbers, if the model has no names

  def top(self, k: int = 5) -> list[list[tuple[str, float]]]:
    """For each image, the names and probabilities of the k most probable
    classes, best first; of all classes if there are fewer."""
    order = np.argsort(-self.probabilities, axis=1, kind='stable')[:, :k]
    return [
      [(self.class_names[i], float(of_image[i])) for i in labels]
      for labels, of_image in zip(order, self.probabilities, strict=True)
    ]


@dataclasses.dataclass(frozen=True, eq=False)
class SavedModel:
  """The final network of a run; unpacks as the pair (net, variables).

  `net.apply(variables, images)` gives logits [B, classes] float32 for images
  [B, H, W, C] float32 of the network's own size, normalised; `predict` takes
  images as they are.
  """

  net: models.Network
  variables: dict[str, Any]
  class_names: tuple[str, ...] | None  # by label; None: of an earlier version
  _workdir: pathlib.Path
  _saved: architecture.Architecture

  def __repr__(self) -> str:
    height, width, channels = self._saved.image_shape
    params = sum(a.size for a in jax.tree.leaves(self.variables['params']))
    return (
      f"SavedModel('{self._workdir}': {type(self.net).__name__},"
      f' {params:,} params, images {height}x{width}x{channels},'
      f' {self.net.classes} classes)'
    )

  def __iter__(self) -> Iterator[Any]:
    return iter((self.net, self.variables))

  @functools.cached_property
  def preprocessing(self) -> Preprocessing:
    """How the run's evaluation makes an input of an image. In a folder of an
    earlier version this is read from its config.json.

    Raises:
      UserError: it is in neither file.
    """
    if self._saved.preprocessing is not None:
      return self._saved.preprocessing
    return _preprocessing_of_config(self._workdir, self._saved.image_shape)

  def predict(self, images: Any) -> Predictions:
    """Classifies images as the run's evaluation does.

    Images are arrays of uint8 pixels of any size: [B, H, W, C], or one [H, W,
    C], or an iterable of those, of any sizes. A single channel is repeated for
    a network of several. They are resized, cropped or padded, and normalised as
    in the run's evaluation (`Preprocessing`).

    Raises:
      UserError: images have another dtype, shape or number of channels; or no
        file says how they were prepared.
    """
    if isinstance(images, str | os.PathLike):
      raise errors.UserError(
        f"'{os.fspath(images)}' is no array; for files use python -m"
        ' dnal_jax.predict DIR FILE..., or read their pixels first'
      )
    if isinstance(images, np.ndarray | jax.Array) and images.ndim != 4:
      images = [images]
    inputs = [self._input(image) for image in images]
    classes = self.net.classes
    logits = np.zeros((len(inputs), classes), np.float32)
    # A program is compiled for each size of a batch.
    size = min(BATCH, 1 << max(len(inputs) - 1, 0).bit_length())
    for start in range(0, len(inputs), size):
      batch = np.stack(inputs[start : start + size])
      padding = ((0, size - len(batch)), *[(0, 0)] * 3)
      of_batch = _logits(
        self.net, self.preprocessing, self.variables, np.pad(batch, padding)
      )
      logits[start : start + size] = of_batch[: len(batch)]
    exponentials = np.exp(logits - logits.max(1, keepdims=True))
    probabilities = exponentials / exponentials.sum(1, keepdims=True)
    names = self.class_names or tuple(map(str, range(classes)))
    return Predictions(logits, probabilities, names)

  def _input(self, image: Any) -> np.ndarray:
    """One image -> uint8 of the network's shape."""
    image = np.asarray(image)
    if image.dtype != np.uint8:
      raise errors.UserError(
        f'images are {image.dtype}; give pixels as uint8, from 0 to 255 and not'
        ' normalised: np.uint8(np.round(255 * images)) if they are from 0 to 1,'
        ' images.astype(np.uint8) if they are from 0 to 255'
      )
    if image.ndim != 3 or 0 in image.shape:
      raise errors.UserError(
        f'an image has the shape {list(image.shape)}; give images as [B, H, W,'
        ' C] or [H, W, C], a gray one as image[..., None]'
      )
    try:
      return self.preprocessing(image)
    except ValueError as error:
      raise errors.UserError(f'an image cannot be used: {error}') from error


def load(workdir: str | os.PathLike) -> SavedModel:
  """The network of a finished run, without any training code:

      model = load('runs/demo')
      model.predict(images).top(5)
      net, variables = model

  Raises:
    UserError: a file is missing, damaged, or does not fit the others; or JAX
      cannot use a platform that JAX_PLATFORMS names.
  """
  workdir = paths.local('workdir', workdir)
  if not workdir.is_dir():
    raise errors.UserError(f"'{workdir}' is not a directory")
  if not (workdir / 'architecture.json').exists():
    if (workdir / 'config.json').exists():
      raise errors.UserError(
        f"'{workdir}' is the folder of a run that has not finished; the command"
        f' that began it finishes it, and python -m dnal_jax.status {workdir}'
        ' says how far it is'
      )
    raise errors.UserError(
      f"'{workdir}' is not the folder of a finished run: it has no"
      ' architecture.json'
    )
  mesh.check_platforms()
  saved = architecture.read(workdir / 'architecture.json')
  want = architecture.form(saved.net, saved.image_shape).arrays
  arrays = weights.read(workdir, want)
  variables = trees.unflatten(jax.tree.map(jax.numpy.asarray, arrays))
  return SavedModel(saved.net, variables, saved.class_names, workdir, saved)


@functools.partial(jax.jit, static_argnums=(0, 1))
def _logits(
  net: models.Network,
  preprocessing: Preprocessing,
  variables: Mapping[str, Any],
  images: jax.Array,  # [B, H, W, C] uint8
) -> jax.Array:  # [B, classes] float32
  return net.apply(variables, batches.normalise(images, preprocessing))


def _preprocessing_of_config(
  workdir: pathlib.Path, image_shape: tuple[int, int, int]
) -> Preprocessing:
  """That of a folder whose architecture.json has none."""
  path = workdir / 'config.json'
  try:
    data = json_files.read_json(path)['config']['data']
    streamed = is_streamed(data['name'], data.get('folder'))
    short_side = data.get('short_side', Data.short_side) if streamed else None
    return Preprocessing.from_json(
      {**data, 'short_side': short_side}, image_shape
    )
  except (
    errors.UserError,
    LookupError,
    TypeError,
    AttributeError,
    ValueError,
  ) as error:
    raise errors.UserError(
      f"'{workdir}' is of an earlier version, whose architecture.json does not"
      ' say how images are resized and normalised, and its config.json does not'
      f' say it either ({error}); bring back the config.json of the run, or'
      ' normalise images of its size and call net.apply(variables, images)'
    ) from error
