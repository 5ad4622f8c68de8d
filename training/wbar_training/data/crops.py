"""Random boxes of an image, resized to the network's size; and the centre for held-out images.

A box has area A·u, u ~ U(0.08, 1), and aspect width/height = exp(v), v ~ U(ln ¾, ln 4/3), at a uniform place (Szegedy et
al. 2015). Of ten drawn boxes the first that fits is taken; if none does, the largest centred one with an aspect in range.
"""

from math import log

import torch
import torch.nn.functional as F
from torch import Tensor

from wbar_training.to_device import to_device

AREA = (0.08, 1.0)
ASPECT = (3 / 4, 4 / 3)
TRIES = 10


def boxes(batch: int, height: int, width: int, draws: torch.Generator) -> Tensor:
    """Return a box inside height × width for each image, (B, 4) float64: top, left, height and width in whole pixels."""
    area = height * width * torch.empty(batch, TRIES, dtype=torch.float64).uniform_(*AREA, generator=draws)
    low, high = (log(side) for side in ASPECT)
    aspect = torch.empty(batch, TRIES, dtype=torch.float64).uniform_(low, high, generator=draws).exp()
    tall, wide = (area / aspect).sqrt().round(), (area * aspect).sqrt().round()
    fits = (tall >= 1) & (tall <= height) & (wide >= 1) & (wide <= width)
    first = fits.double().argmax(dim=1, keepdim=True)
    tall, wide = tall.gather(1, first).squeeze(1), wide.gather(1, first).squeeze(1)
    none = ~fits.any(dim=1)
    tall[none], wide[none] = _centred(height, width)
    place = torch.rand(2, batch, dtype=torch.float64, generator=draws)
    top = (place[0] * (height - tall + 1)).floor()
    left = (place[1] * (width - wide + 1)).floor()
    top[none], left[none] = ((height - tall) / 2).floor()[none], ((width - wide) / 2).floor()[none]
    return torch.stack([top, left, tall, wide], dim=1)


def _centred(height: int, width: int) -> tuple[float, float]:
    aspect = width / height
    if aspect < ASPECT[0]:
        return float(round(width / ASPECT[0])), float(width)
    if aspect > ASPECT[1]:
        return float(height), float(round(height * ASPECT[1]))
    return float(height), float(width)


def resized_crop(images: Tensor, draws: torch.Generator, flip: bool) -> Tensor:
    """Resize random boxes of a batch bilinearly to the batch's size: (B, C, H, W) uint8 to float32 in 0…255.

    A box is never larger than its result, so there is nothing to antialias.
    """
    batch, _, height, width = images.shape
    top, left, tall, wide = boxes(batch, height, width, draws).unbind(dim=1)
    rows = _places(top, tall, height)
    columns = _places(left, wide, width)
    if flip:
        mirrored = torch.rand(batch, generator=draws) < 0.5
        columns = torch.where(mirrored[:, None], columns.flip(1), columns)
    x = to_device((columns * 2 / width - 1).float(), images.device)
    y = to_device((rows * 2 / height - 1).float(), images.device)
    grid = torch.stack([x[:, None, :].expand(batch, height, width), y[:, :, None].expand(batch, height, width)], dim=-1)
    # Edges are repeated beyond the box's half pixel at the image's border.
    return F.grid_sample(images.float(), grid, mode="bilinear", padding_mode="border", align_corners=False)


def _places(begin: Tensor, length: Tensor, count: int) -> Tensor:
    """Return where `count` pixels of the result lie in the source: the centres of equal parts of the box, (B, count)."""
    centres = (torch.arange(count, dtype=torch.float64) + 0.5) / count
    return begin[:, None] + length[:, None] * centres
