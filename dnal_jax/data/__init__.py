"""Images and labels: where they come from, and the batches made of them."""

import dataclasses


@dataclasses.dataclass(frozen=True)
class Data:
  """Which images, and how they are presented to the network.

  Small sets (`memory.NAMES`) lie on the device as a whole; any other name of
  tensorflow-datasets, and a folder, is streamed from its encoded images.
  """

  name: str  # 'digits', or a tensorflow-datasets name
  mean: tuple[float, ...]  # per channel, of pixels in [0, 1]
  std: tuple[float, ...]
  image: int  # side in pixels; smaller images get a margin of zeros
  classes: int | None  # None: as many as the data set has
  validation: int  # images taken from the training split to make choices with
  flip: bool = False  # left-right, every other image
  dir: str | None = None  # of tensorflow-datasets; None: its usual place
  train_limit: int | None = None  # train on so many images only; None: all
  # In memory:
  crop_pad: int = 0  # random crop after padding each side by so many zeros
  # Streamed:
  folder: str | None = None  # train/CLASS/*, val/CLASS/*, in place of `name`
  test_split: str = 'test'  # of tensorflow-datasets, read once at the end
  crop_scale: tuple[float, ...] = (0.08, 1.0)  # share of the area, in training
  short_side: int = 256  # in pixels, before the centre crop, in evaluation
  skip_broken: bool = False  # go on without images that cannot be decoded

  @property
  def title(self) -> str:
    """What the data set is called in results and messages."""
    return self.folder or self.name
