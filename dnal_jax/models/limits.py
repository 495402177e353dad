"""The largest network that a config or a file may ask for.

Far above what is trained, and small enough to trace any network within them in
little memory; `graph.walk.MAX_PARAMS` limits the parameters.
"""

NAME = 100  # characters
WIDTH = 8.0  # multiplier
CLASSES = 100_000
SIDE = 1024  # of an image, in pixels
CHANNELS = 64  # of an image
