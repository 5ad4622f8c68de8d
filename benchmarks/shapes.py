"""Drawn shapes on textures, with exact masks and boxes: a segmentation or detection dataset of any size, from a seed.

    python -m benchmarks.shapes shapes.zip --train 400 --val 100 --side 64 [--boxes | --masks]

A disc, a square and a triangle differ in outline and, less reliably, in colour; they lie over one another on a background of
smooth noise and stripes. A pixel belongs to a shape if its centre lies inside. Each shape's edge may be marked as void.
"""

import argparse
import io
import json
import zipfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

CLASSES = ("background", "disc", "square", "triangle")
VOID = 255
HUES = {1: (190, 80, 70), 2: (80, 180, 80), 3: (80, 90, 200)}  # the middle of each shape's colours
Pixels = NDArray[np.uint8]
Grid = NDArray[np.float64]


@dataclass(frozen=True)
class Box:
    """The box of what is seen of one shape, in pixels: its ends are beyond the last row and column."""

    label: int
    top: int
    left: int
    bottom: int
    right: int


@dataclass(frozen=True)
class Drawing:
    """One image, (H, W, 3), its mask, (H, W), the boxes of its shapes, and what is seen of each, (H, W) bool."""

    image: Pixels
    mask: Pixels
    boxes: tuple[Box, ...]
    seen: tuple[NDArray[np.bool_], ...]


def draw(size: tuple[int, int], draws: np.random.Generator, most: int = 3, void_edge: bool = False) -> Drawing:
    """Draw one image. size: (height, width). most: shapes, at least one. void_edge: mark the shapes' outlines as void."""
    image, mask = _background(size, draws), np.zeros(size, np.uint8)
    owner = np.zeros(size, np.int64)
    labels = draws.integers(1, len(CLASSES), size=draws.integers(1, most + 1))
    for number, label in enumerate(labels, start=1):
        inside = _outline(int(label), size, draws)
        colour = np.clip(np.array(HUES[int(label)]) + draws.normal(0, 30, 3), 0, 255)
        shade = 1 + 0.25 * _noise(size, draws, 4)
        image = np.where(inside[..., None], colour * shade[..., None], image)
        mask[inside], owner[inside] = label, number
    pixels: Pixels = np.clip(image + draws.normal(0, 8, image.shape), 0, 255).astype(np.uint8)
    shown = [(int(label), owner == number) for number, label in enumerate(labels, 1) if (owner == number).any()]
    boxes = tuple(_box(label, inside) for label, inside in shown)
    if void_edge:
        mask[_edges(owner)] = VOID
    return Drawing(pixels, mask, boxes, tuple(inside for _, inside in shown))


def _noise(size: tuple[int, int], draws: np.random.Generator, cells: int) -> Grid:
    """Return smooth noise about 0, (H, W): a small grid of normal numbers, enlarged bilinearly."""
    grid = Image.fromarray(draws.normal(0, 1, (cells, cells)).astype(np.float32))
    return np.asarray(grid.resize((size[1], size[0]), Image.Resampling.BILINEAR), np.float64)


def _background(size: tuple[int, int], draws: np.random.Generator) -> Grid:
    rows, columns = np.mgrid[0 : size[0], 0 : size[1]]
    angle, wave = draws.uniform(0, np.pi), draws.uniform(4, 16)
    stripes = np.sin((rows * np.sin(angle) + columns * np.cos(angle)) * 2 * np.pi / wave)
    colour = draws.uniform(90, 170) + draws.normal(0, 12, 3)
    return colour + (20 * stripes + 25 * _noise(size, draws, 5))[..., None]


def _outline(label: int, size: tuple[int, int], draws: np.random.Generator) -> NDArray[np.bool_]:
    """Return the pixels of one shape, turned and placed at random, its middle inside the image."""
    radius = draws.uniform(0.15, 0.3) * min(size)
    middle = draws.uniform(0.15, 0.85, 2) * size
    angle = draws.uniform(0, 2 * np.pi)
    rows, columns = np.mgrid[0 : size[0], 0 : size[1]] - middle[:, None, None] + 0.5
    if label == 1:
        return np.asarray(np.hypot(rows, columns) <= radius)
    sides = 4 if label == 2 else 3
    # A regular polygon: within its apothem of every side.
    normals = angle + 2 * np.pi * np.arange(sides) / sides
    far = np.stack([rows * np.sin(a) + columns * np.cos(a) for a in normals]).max(axis=0)
    return np.asarray(far <= radius * np.cos(np.pi / sides) * (1.2 if sides == 3 else 1.0))


def _box(label: int, pixels: NDArray[np.bool_]) -> Box:
    rows, columns = np.flatnonzero(pixels.any(axis=1)), np.flatnonzero(pixels.any(axis=0))
    return Box(label, int(rows[0]), int(columns[0]), int(rows[-1]) + 1, int(columns[-1]) + 1)


def _edges(owner: NDArray[np.int64]) -> NDArray[np.bool_]:
    edges = np.zeros(owner.shape, bool)
    edges[1:] |= owner[1:] != owner[:-1]
    edges[:, 1:] |= owner[:, 1:] != owner[:, :-1]
    return edges


def write_archive(
    path: Path,
    train: int,
    val: int,
    sizes: Sequence[tuple[int, int]] = ((64, 64),),
    seed: int = 0,
    void_edge: bool = False,
) -> None:
    """Write a segmentation archive. sizes: (height, width) of one image after another, again from the first."""
    with zipfile.ZipFile(path, "w") as file:
        file.writestr("classes.txt", "\n".join(CLASSES) + "\n")
        for split, count in (("train", train), ("val", val)):
            for index in range(count):
                draws = np.random.default_rng([seed, split == "val", index])
                drawing = draw(sizes[index % len(sizes)], draws, void_edge=void_edge)
                file.writestr(f"{split}/images/{index:05d}.png", _png(drawing.image))
                file.writestr(f"{split}/masks/{index:05d}.png", _png(drawing.mask))


def write_boxes_archive(
    path: Path, train: int, val: int, sizes: Sequence[tuple[int, int]] = ((64, 64),), seed: int = 0, masks: bool = False
) -> None:
    """Write a detection archive of the same drawings, with COCO's JSON.

    sizes: as of `write_archive`.
    masks: whether each box has its mask, as runs.
    """
    with zipfile.ZipFile(path, "w") as file:
        for split, count in (("train", train), ("val", val)):
            images, annotations = list[dict[str, object]](), list[dict[str, object]]()
            for index in range(count):
                height, width = sizes[index % len(sizes)]
                drawing = draw((height, width), np.random.default_rng([seed, split == "val", index]))
                name = f"{index:05d}.png"
                file.writestr(f"{split}/images/{name}", _png(drawing.image))
                images.append({"id": index + 1, "file_name": name, "width": width, "height": height})
                for one, seen in zip(drawing.boxes, drawing.seen, strict=True):
                    box = [one.left, one.top, one.right - one.left, one.bottom - one.top]
                    mask = {"area": int(seen.sum()), "iscrowd": 0, "segmentation": _runs(seen)} if masks else {}
                    annotations.append(
                        {"id": len(annotations) + 1, "image_id": index + 1, "category_id": one.label, "bbox": box}
                        | mask
                    )
            categories = [{"id": label, "name": name} for label, name in enumerate(CLASSES) if label]
            document = {"images": images, "annotations": annotations, "categories": categories}
            file.writestr(f"{split}/annotations.json", json.dumps(document))


def _runs(mask: NDArray[np.bool_]) -> dict[str, object]:
    """Return a mask as COCO has it: pixels outside and inside in turn, down one column after another."""
    down = np.concatenate([[False], mask.T.ravel()])
    turns = np.concatenate([[0], np.flatnonzero(down[1:] != down[:-1]), [mask.size]])
    return {"size": list(mask.shape), "counts": np.diff(turns).tolist()}


def _png(pixels: Pixels) -> bytes:
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "PNG")
    return file.getvalue()


def main() -> None:
    """Write the archive that is asked for."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.shapes", description=__doc__)
    parser.add_argument("path", type=Path)
    parser.add_argument("--train", type=int, default=400)
    parser.add_argument("--val", type=int, default=100)
    parser.add_argument("--side", type=int, default=64)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--void-edge", action="store_true")
    parser.add_argument("--boxes", action="store_true", help="a detection archive")
    parser.add_argument("--masks", action="store_true", help="the same with a mask for each box")
    asked = parser.parse_args()
    if asked.boxes or asked.masks:
        size = [(asked.side, asked.side)]
        write_boxes_archive(asked.path, asked.train, asked.val, size, asked.seed, asked.masks)
        return
    write_archive(asked.path, asked.train, asked.val, [(asked.side, asked.side)], asked.seed, asked.void_edge)


if __name__ == "__main__":
    main()
