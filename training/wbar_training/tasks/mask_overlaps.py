"""What an average precision needs to know of an image's masks, in numbers of pixels.

A mask of a photograph has millions of pixels, and nearly all are outside: of each mask only a window that holds all that is
inside is made and kept.
"""

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor
from torchvision.models.detection.roi_heads import expand_boxes, expand_masks

from wbar_training.data.instance_masks import Size

INSIDE = 0.5  # a pixel is in a mask that is surer of it, as in torchvision's references
_PADDING = 1  # of a detection's mask, in its own pixels, as torchvision lays it into an image


@dataclass(frozen=True)
class Window:
    """The part of a mask that holds all of its pixels.

    span: first row, first column, and those after the last. inside: (rows, columns) bool.
    """

    span: tuple[int, int, int, int]
    inside: Tensor

    @classmethod
    def of(cls, mask: Tensor, corner: tuple[int, int] = (0, 0)) -> "Window":
        """Return the window of a mask, (H, W) bool. corner: the row and the column that its first pixel has in the image."""
        rows, columns = (mask.any(dim=dim).nonzero()[:, 0] for dim in (1, 0))
        if not len(rows):
            return cls((0, 0, 0, 0), mask[:0, :0])
        top, bottom, left, right = int(rows[0]), int(rows[-1]) + 1, int(columns[0]), int(columns[-1]) + 1
        down, across = corner
        span = (down + top, across + left, down + bottom, across + right)
        return cls(span, mask[top:bottom, left:right].clone())

    def whole(self, size: Size) -> Tensor:
        """Return the mask in an image of this size, (H, W) bool."""
        mask = torch.zeros(size, dtype=torch.bool)
        top, left, bottom, right = self.span
        mask[top:bottom, left:right] = self.inside
        return mask

    def common(self, other: "Window") -> int:
        """Return how many pixels both masks have."""
        ours, theirs = self.span, other.span
        top, left = max(ours[0], theirs[0]), max(ours[1], theirs[1])
        bottom, right = min(ours[2], theirs[2]), min(ours[3], theirs[3])
        if top >= bottom or left >= right:
            return 0
        return int((self._cut(top, left, bottom, right) & other._cut(top, left, bottom, right)).sum())

    def _cut(self, top: int, left: int, bottom: int, right: int) -> Tensor:
        return self.inside[top - self.span[0] : bottom - self.span[0], left - self.span[1] : right - self.span[1]]


def windows(found: Mapping[str, Tensor], size: Size) -> Iterator[Window]:
    """Yield the mask of each detection of an image of this size: the pixels that torchvision pastes into the image.

    found: on the host, `boxes` (n, 4) and `masks` (n, 1, h, w) of how surely each pixel of the box is in.
    """
    if not len(found["boxes"]):
        return
    masks, scale = expand_masks(found["masks"], padding=_PADDING)
    boxes: list[list[int]] = expand_boxes(found["boxes"], scale).to(torch.int64).tolist()
    for mask, (left, top, right, bottom) in zip(masks, boxes, strict=True):
        sides = (max(bottom - top + 1, 1), max(right - left + 1, 1))
        sure = F.interpolate(mask[None], size=sides, mode="bilinear", align_corners=False)[0, 0]
        corner = max(top, 0), max(left, 0)
        rows, columns = (
            slice(begin - side, max(begin, min(end + 1, most)) - side)
            for begin, side, end, most in zip(corner, (top, left), (bottom, right), size, strict=True)
        )
        yield Window.of(sure[rows, columns] > INSIDE, corner)


def pixels_of(found: Iterable[Window], labelled: Iterable[Window], most: tuple[int, int]) -> Tensor:
    """Return the numbers of pixels that stand beside an image's boxes, (detections + labels, 1 + labels) float32.

    The first column has those of each mask, detections before labels; the others those that a detection has in common with
    each label. They are whole numbers below 2²⁴, which float32 has all of.

    most: rows for detections and for labels; what is left over is 0.
    """
    ours, own = list(found), list(labelled)
    pixels = torch.zeros(sum(most), 1 + most[1])
    for begin, masks in ((0, ours), (most[0], own)):
        pixels[begin : begin + len(masks), 0] = torch.tensor([float(one.inside.sum()) for one in masks])
    if own:
        both = [[float(one.common(other)) for other in own] for one in ours]
        pixels[: len(ours), 1 : 1 + len(own)] = torch.tensor(both).view(len(ours), len(own))
    return pixels
