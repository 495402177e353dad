"""Images and labels: read once into memory, batched on the device."""

import dataclasses


@dataclasses.dataclass(frozen=True)
class Data:
  """Which images, and how they are presented to the network."""

  name: str  # 'digits', or a tensorflow-datasets name
  mean: tuple[float, ...]  # per channel, of pixels in [0, 1]
  std: tuple[float, ...]
  image: int  # side in pixels; smaller images get a margin of zeros
  classes: int
  validation: int  # images taken from the training split to make choices with
  crop_pad: int = 0  # random crop after padding each side by so many zeros
  flip: bool = False  # left-right, every other image
  dir: str | None = None  # of tensorflow-datasets; None: its usual place
  train_limit: int | None = None  # train on so many images only; None: all
