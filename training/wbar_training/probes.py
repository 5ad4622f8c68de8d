"""Probe images: what a job's networks are asked about when it ends. They have no labels that anything looks at.

shift d          moved by d pixels to the right, or down; the edge is repeated
brightness f     f·v, rounded and clipped to 0 … 255
JPEG             through JPEG at quality 75 and back
"""

import io
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from PIL import Image
from torch import Tensor

from wbar.probe_results import Change
from wbar_training.data.decoding import decode
from wbar_training.data.packed import Packed, Split, load_split
from wbar_training.tasks.task import Reading

QUALITY = 75


@dataclass(frozen=True)
class Probes:
    """The probe images at the job's image size. names: in their archive; empty where it does not keep them."""

    images: Split
    names: list[str]


def read_probes(path: Path, reading: Reading) -> Probes:
    """Return all images of a packed dataset, first those of `train`, then those of `val`."""
    packed = Packed.read(path)
    splits = [split for split in ("train", "val") if packed.images[split]]
    parts = [
        load_split(path, split, reading.image_size, None, reading.centre, 0, reading.fit).images for split in splits
    ]
    images = torch.cat(parts)
    return Probes(Split(images, torch.zeros(len(images), dtype=torch.int64)), packed.names or [])


def moved(images: Tensor, pixels: int, dimension: int) -> Tensor:
    """Return images (N, C, H, W) whose content is `pixels` further along a dimension, the first row or column repeated."""
    size = images.shape[dimension]
    return images.index_select(dimension, (torch.arange(size) - pixels).clamp_min(0))


def brightened(images: Tensor, factor: float) -> Tensor:
    """Return uint8 images with every value times `factor`."""
    return (images.double() * factor).round().clamp(0, 255).to(torch.uint8)


def compressed(images: Tensor) -> Tensor:
    """Return uint8 images (N, C, H, W) of one or three channels as JPEG at quality 75 gives them back."""
    return torch.stack([_compressed(image) for image in images])


def _compressed(image: Tensor) -> Tensor:
    pixels = image[0] if image.shape[0] == 1 else image.permute(1, 2, 0)
    file = io.BytesIO()
    Image.fromarray(pixels.contiguous().numpy()).save(file, "JPEG", quality=QUALITY)
    return decode(file.getvalue(), image.shape[0])


def _shifts(pixels: int) -> list[Callable[[Tensor], Tensor]]:
    return [lambda images, at=at: moved(images, pixels, at) for at in (3, 2)]  # type: ignore[misc]


# What is done for each change; of several images for one, the numbers are means.
CHANGED: dict[Change, list[Callable[[Tensor], Tensor]]] = {
    "shift_1": _shifts(1),
    "shift_2": _shifts(2),
    "shift_3": _shifts(3),
    "shift_4": _shifts(4),
    "darker": [lambda images: brightened(images, 0.9)],
    "brighter": [lambda images: brightened(images, 1.1)],
    "jpeg_75": [compressed],
}
