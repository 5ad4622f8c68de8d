"""Runs of a mask as COCO's library writes them: as text.

Each run from the fourth on is a difference to the one two before it. A number is written in groups of five bits, the lowest
first, as characters from '0' on; 32 is added where another group follows. The last group's highest bit is the sign.
"""

import numpy as np
from numpy.typing import NDArray

FIRST = ord("0")
_GROUPS = 8  # of five bits: more than an int32 and its sign take


def as_text(runs: NDArray[np.int32]) -> str:
    """Return runs as text. runs: pixels outside and inside in turn, as `instance_masks.runs_of` has them."""
    numbers = runs.astype(np.int64)
    numbers[3:] -= runs[1:-2].astype(np.int64)
    rests = numbers[:, None] >> 5 * np.arange(_GROUPS)
    low = rests & 31
    # A group is the last where the rest above it is all sign, and its own highest bit is that sign.
    last = (rests >> 5) == -((low & 16) >> 4)
    length = last.argmax(axis=1)[:, None]
    places = np.arange(_GROUPS)
    characters = FIRST + low + np.where(places < length, 32, 0)
    return bytes(characters[places <= length].astype(np.uint8)).decode("ascii")
