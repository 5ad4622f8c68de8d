"""Masks of instances: one for each box of an image, stored as runs, and sent to the network as bits.

    runs   pixels outside, inside, outside … along the rows of the image, the first outside (0 where it begins inside)
    bits   eight pixels in a byte, along the rows, the first in the highest bit; what is left of the last byte is 0

Runs cost some bytes for each row that a shape crosses. Bits have one size for all masks of a batch.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torchvision.transforms import InterpolationMode
from torchvision.transforms.v2 import functional

Size = tuple[int, int]  # height and width, in pixels
_WEIGHTS = tuple(2**place for place in range(7, -1, -1))


def runs_of(mask: NDArray[np.bool_]) -> NDArray[np.int32]:
    """Return the runs of a mask, (H, W)."""
    flat = mask.ravel()
    ends = np.flatnonzero(flat[1:] != flat[:-1]) + 1
    begins = np.concatenate([[0] if not flat[0] else [0, 0], ends, [flat.size]])
    return np.diff(begins).astype(np.int32)


def mask_of(runs: Tensor, size: Size) -> Tensor:
    """Return the mask of runs, (H, W) bool."""
    inside = torch.arange(len(runs)) % 2 == 1
    return inside.repeat_interleave(runs.long()).view(size)


def as_bits(masks: Tensor) -> Tensor:
    """Return masks, (n, H, W) bool, as bits, (n, bytes) uint8."""
    flat = masks.flatten(1)
    eights = torch.nn.functional.pad(flat, (0, -flat.shape[1] % 8))
    eights = eights.view(len(flat), eights.shape[1] // 8, 8)
    weights = torch.tensor(_WEIGHTS, dtype=torch.uint8, device=masks.device)
    return (eights.to(torch.uint8) * weights).sum(dim=2, dtype=torch.uint8)


def of_bits(bits: Tensor, size: Size) -> Tensor:
    """Return the masks of bits, (n, bytes) uint8: (n, H, W) bool."""
    weights = torch.tensor(_WEIGHTS, dtype=torch.uint8, device=bits.device)
    eights = (bits[:, :, None] & weights) > 0
    return eights.flatten(1)[:, : size[0] * size[1]].view(-1, *size)


@dataclass(frozen=True)
class MaskRuns:
    """The masks of one split of a packed file.

    runs: int32, those of all masks end to end.
    offsets: int64; the runs of mask k go from offsets[k] to offsets[k + 1].
    boxes: int64; the masks of image i are those from boxes[i] to boxes[i + 1], in the order of its boxes.
    """

    runs: Tensor
    offsets: Tensor
    boxes: Tensor

    def masks(self, row: int, size: Size) -> Tensor:
        """Return the masks of one image of this size, (its boxes, H, W) bool."""
        found = list(self.each(row, size))
        return torch.stack(found) if found else torch.zeros(0, *size, dtype=torch.bool)

    def each(self, row: int, size: Size) -> Iterator[Tensor]:
        """Yield the same one after another, (H, W) bool: those of a photograph are large together."""
        first, last = self.boxes[row : row + 2].tolist()
        ends = self.offsets[first : last + 1].tolist()
        for begin, end in pairwise(ends):
            yield mask_of(self.runs[begin:end], size)


def resized(mask: Tensor, size: list[int]) -> Tensor:
    """Return a mask, (H, W) bool, at another size by its nearest pixels."""
    if list(mask.shape) == size:
        return mask
    nearest: Tensor = functional.resize(mask[None].to(torch.uint8), size, InterpolationMode.NEAREST_EXACT)[0]
    return nearest > 0


def filled_bits(masks: Tensor, most: int) -> Tensor:
    """Return masks as bits, filled up with empty ones to `most` rows."""
    bits = as_bits(masks)
    return torch.nn.functional.pad(bits, (0, 0, 0, most - len(bits)))
