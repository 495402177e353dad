"""Images and labels: where they come from, and the batches made of them."""

import dataclasses
from typing import Annotated

from dnal_jax import limits
from dnal_jax.limits import Range

# Small data sets, which are kept on the device: that of scikit-learn, and of
# tensorflow-datasets those that have the features image and label.
RESIDENT = ('digits', 'cifar10', 'cifar100', 'fashion_mnist', 'mnist')


def is_streamed(name: str, folder: str | None) -> bool:
  """Whether the images of a data set are streamed; otherwise they are kept on
  the device."""
  return folder is not None or name not in RESIDENT


@dataclasses.dataclass(frozen=True)
class Data:
  """A data set, and how its images are presented to the network.

  Small data sets (`RESIDENT`) are kept on the device. Any other name of
  tensorflow-datasets, and a folder of images, is streamed: its encoded images
  are read and decoded while the run goes on.
  """

  name: str  # 'digits', or a tensorflow-datasets name
  # Per channel, of pixels in [0, 1].
  mean: Annotated[tuple[float, ...], Range(above=-limits.MEAN, max=limits.MEAN)]
  std: Annotated[tuple[float, ...], Range(above=0, max=limits.MEAN)]
  # Side in pixels; smaller images are padded with zeros.
  image: Annotated[int, Range(min=1, max=limits.SIDE)]
  # None: as many as the data set has.
  classes: Annotated[int | None, Range(min=2, max=limits.CLASSES)]
  # Images of the training split that are held out to make choices with.
  validation: Annotated[int, Range(min=1)]
  flip: bool = False  # mirror images left to right at random, in training
  dir: str | None = None  # of tensorflow-datasets; None: its default
  # Train on this many images only; None: on all.
  train_limit: Annotated[int | None, Range(min=1)] = None

  # Data sets on the device:
  # Zeros added to each side before a random crop; 0: no crop.
  crop_pad: Annotated[int, Range(min=0)] = 0

  # Streamed data sets:
  folder: str | None = None  # has train/CLASS/*, val/CLASS/*; replaces `name`
  test_split: str = 'test'  # of tensorflow-datasets, read once at the end
  # Smallest and largest share of the area that a random crop shows.
  crop_scale: Annotated[tuple[float, ...], Range(above=0, max=1)] = (0.08, 1.0)
  # Pixels of the shorter side before the centre crop, in evaluation.
  short_side: Annotated[int, Range(min=1, max=limits.SHORT_SIDE)] = 256
  skip_broken: bool = False  # go on without images that cannot be decoded

  def __post_init__(self):
    limits.check(self)
    channels = len(self.mean)
    if channels != len(self.std):
      raise ValueError(
        f'mean is {self.mean} and std is {self.std}; give both one number per'
        ' channel'
      )
    if not 1 <= channels <= limits.CHANNELS:
      raise ValueError(
        f'mean has {channels} numbers; it must have 1 to {limits.CHANNELS},'
        ' one per channel'
      )
    if len(self.crop_scale) != 2 or self.crop_scale[0] > self.crop_scale[1]:
      raise ValueError(
        f'crop_scale is {self.crop_scale}; it must be two shares of the area,'
        ' the smaller first, such as (0.08, 1.0)'
      )

  @property
  def title(self) -> str:
    """The name of the data set in results and messages."""
    return self.folder or self.name
