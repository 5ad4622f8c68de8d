"""A dataset at a glance: how many images each class has, and a sheet with the first few of each."""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import torch
from PIL import Image
from safetensors import safe_open
from torch import Tensor

from wbar_training.data.decoding import decode
from wbar_training.data.packed import Packed

CELL, EDGE = 48, 4  # pixels a side, with an edge around each image
EACH, MOST_CLASSES = 8, 100
PAPER = (128, 128, 128)


@dataclass(frozen=True)
class Glance:
    """The number of images of each class, by split; and the sheet, of which row k shows class k.

    Of regression there are no counts, and row k shows images from the least to the most of target k.
    """

    class_counts: dict[str, list[int]]
    sheet: Image.Image


def look(packed: Path, classes: int) -> Glance:
    """Return a packed dataset at a glance. classes: how many it has."""
    with safe_open(packed, framework="pt") as file:
        names = set(file.keys())
        numbers = Packed.read(packed).task == "regression"
        splits = {name.split(".")[0] for name in names if name.endswith(".labels")}
        labels = {split: file.get_tensor(f"{split}.labels") for split in sorted(splits)}
        rows = min(classes, MOST_CLASSES)
        sheet = Image.new("RGB", (EACH * CELL, rows * CELL), PAPER)
        for row, column, index in (_spread if numbers else _chosen)(labels["train"], rows):
            if "train.encoded" in names:
                begin, end = (int(one) for one in file.get_slice("train.offsets")[index : index + 2])
                pixels = decode(file.get_slice("train.encoded")[begin:end].numpy().tobytes(), 3)
            else:
                pixels = file.get_slice("train.images")[index : index + 1][0]
            sheet.paste(_thumbnail(pixels), (column * CELL + EDGE, row * CELL + EDGE))
    if numbers:
        return Glance({}, sheet)
    return Glance({split: _counts(one, classes) for split, one in labels.items()}, sheet)


def _chosen(labels: Tensor, rows: int) -> Iterator[tuple[int, int, int]]:
    """Yield row, column and index of the images to show: the first ones of each class."""
    for row in range(rows):
        members = labels == row if labels.dim() == 1 else labels[:, row] > 0
        for column, index in enumerate(members.nonzero()[:EACH, 0].tolist()):
            yield row, column, index


def _spread(targets: Tensor, rows: int) -> Iterator[tuple[int, int, int]]:
    """Yield row, column and index of images at even steps of the order of each target, (N, targets)."""
    shown = min(EACH, len(targets))
    for row in range(rows):
        order = targets[:, row].argsort(stable=True)
        for column in range(shown):
            yield row, column, int(order[(len(order) - 1) * column // max(shown - 1, 1)])


def _counts(labels: Tensor, classes: int) -> list[int]:
    counts = torch.bincount(labels, minlength=classes) if labels.dim() == 1 else labels.long().sum(dim=0)
    return [int(one) for one in counts]


def _thumbnail(pixels: Tensor) -> Image.Image:
    """Return an image, (C, H, W) uint8, as a square; small ones are enlarged without smoothing."""
    shown = pixels[:3] if pixels.shape[0] >= 3 else pixels[:1].expand(3, -1, -1)
    image = Image.fromarray(shown.permute(1, 2, 0).contiguous().numpy())
    side = CELL - 2 * EDGE
    small = max(image.size) <= side
    return image.resize((side, side), Image.Resampling.NEAREST if small else Image.Resampling.BILINEAR)
