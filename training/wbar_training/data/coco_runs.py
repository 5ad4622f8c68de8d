"""Runs of a mask as COCO's library writes them: as text.

Each run from the fourth on is a difference to the one two before it. A number is written in groups of five bits, the lowest
first, as characters from '0' on; 32 is added where another group follows. The last group's highest bit is the sign.
"""

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from wbar_training.data.instance_masks import runs_of

FIRST = ord("0")
_GROUPS = 8  # of five bits: more than an int32 and its sign take


def runs_down(mask: Tensor) -> NDArray[np.int32]:
    """Return the runs of a mask, (H, W) bool, down one column after another; of a photograph most columns have no pixel."""
    height, width = mask.shape
    columns = mask.any(dim=0).nonzero()[:, 0]
    if not len(columns):
        return np.array([height * width], np.int32)
    first, after = int(columns[0]), int(columns[-1]) + 1
    runs = runs_of(mask[:, first:after].numpy().T)
    runs[0] += first * height
    rest = (width - after) * height
    if len(runs) % 2:  # the last run is outside
        runs[-1] += rest
        return runs
    return np.append(runs, np.int32(rest)) if rest else runs


def as_text(runs: NDArray[np.int32]) -> str:
    """Return runs as text. runs: pixels outside and inside in turn, of `runs_down`."""
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
