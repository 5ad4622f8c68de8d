"""What an average precision needs to know of an image's masks, in numbers of pixels.

A mask of a photograph has millions of pixels, and nearly all are outside: each is laid into the image by itself, and only
the window that holds what is inside is kept.
"""

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor
from torchvision.models.detection.roi_heads import paste_masks_in_image

from wbar_training.data.instance_masks import Size

INSIDE = 0.5  # a pixel is in a mask that is surer of it, as in torchvision's references


@dataclass(frozen=True)
class _Window:
    """The part of a mask that holds all of its pixels. span: first row, first column, and those after the last."""

    span: tuple[int, int, int, int]
    inside: Tensor

    def common(self, other: "_Window") -> int:
        """Return how many pixels both masks have."""
        ours, theirs = self.span, other.span
        top, left = max(ours[0], theirs[0]), max(ours[1], theirs[1])
        bottom, right = min(ours[2], theirs[2]), min(ours[3], theirs[3])
        if top >= bottom or left >= right:
            return 0
        return int((self._cut(top, left, bottom, right) & other._cut(top, left, bottom, right)).sum())

    def _cut(self, top: int, left: int, bottom: int, right: int) -> Tensor:
        return self.inside[top - self.span[0] : bottom - self.span[0], left - self.span[1] : right - self.span[1]]


def _window(mask: Tensor) -> _Window:
    """Return the window of a mask, (H, W) bool."""
    rows, columns = (mask.any(dim=dim).nonzero()[:, 0] for dim in (1, 0))
    if not len(rows):
        return _Window((0, 0, 0, 0), mask[:0, :0])
    top, bottom, left, right = int(rows[0]), int(rows[-1]) + 1, int(columns[0]), int(columns[-1]) + 1
    return _Window((top, left, bottom, right), mask[top:bottom, left:right].clone())


def pasted(found: Mapping[str, Tensor], size: Size) -> Iterator[Tensor]:
    """Yield the mask of each detection of an image of this size, one after another: (H, W) bool.

    found: on the host, `boxes` (n, 4) and `masks` (n, 1, h, w) of how surely each pixel of the box is in.
    """
    for mask, box in zip(found["masks"], found["boxes"], strict=True):
        yield paste_masks_in_image(mask[None], box[None], size)[0, 0] > INSIDE


def pixels_of(found: Iterable[Tensor], labelled: Iterable[Tensor], most: tuple[int, int]) -> Tensor:
    """Return the numbers of pixels that stand beside an image's boxes, (detections + labels, 1 + labels) float32.

    The first column has those of each mask, detections before labels; the others those that a detection has in common with
    each label. They are whole numbers below 2²⁴, which float32 has all of.

    found, labelled: masks, each (H, W) bool. most: rows for detections and for labels; what is left over is 0.
    """
    ours, own = [_window(mask) for mask in found], [_window(mask) for mask in labelled]
    pixels = torch.zeros(sum(most), 1 + most[1])
    pixels[: len(ours), 0] = torch.tensor([float(one.inside.sum()) for one in ours])
    pixels[most[0] : most[0] + len(own), 0] = torch.tensor([float(one.inside.sum()) for one in own])
    for row, one in enumerate(ours):
        for column, other in enumerate(own, start=1):
            pixels[row, column] = one.common(other)
    return pixels
