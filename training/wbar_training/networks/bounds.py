"""Bounds of a network that is built from what a file says, whatever library it is of."""

MOST_PIXELS = 4096  # of a side of its images
MOST_CLASSES = 1_000_000
