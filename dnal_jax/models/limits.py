"""How large a network may be asked for, by a config or by a file.

Far above what is trained, and low enough for the walk over any network within
them (`compact.walk`, which has the limit of parameters) to take little memory.
"""

NAME = 100  # characters
WIDTH = 8.0  # multiplier
CLASSES = 100_000
SIDE = 1024  # of an image, in pixels
CHANNELS = 64  # of an image
