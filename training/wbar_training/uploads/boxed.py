"""Images that annotations list, and the masks of their boxes, where every box has one."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from wbar.errors import InvalidArchive
from wbar_averaging.quoting import quoted
from wbar_training.data.boxes import AREA
from wbar_training.data.decoding import Inspected
from wbar_training.data.instance_masks import runs_of
from wbar_training.uploads.coco import Coco, CocoAnnotation, CocoImage
from wbar_training.uploads.coco_masks import Mask, mask_of

MOST_PIXELS = 2**29  # of all masks of an image: evaluation has each as bytes and as numbers
Runs = list[NDArray[np.int32]]  # of each box of an image


@dataclass(frozen=True)
class Boxed:
    """An image file, still encoded, with its entry in the annotations."""

    split: str
    name: str
    data: bytes
    entry: CocoImage


def masks_of(cocos: dict[str, Coco], images: Sequence[Boxed], seen: Sequence[Inspected]) -> list[Runs] | str | None:
    """Return the masks of every image's boxes as runs; None where no box has one; a warning where they are left out.

    They are where only some boxes have one, where one is none (see `coco_masks.mask_of`), and where those of an image are too
    large together: detectors of boxes need none of them. A crowd without a mask, or with one that is none, has all of its
    box, since it is neither learned nor counted.
    """
    boxes = {split: coco.boxes() for split, coco in cocos.items()}
    listed = [(one, boxes[one.split][one.entry.id]) for one in images]
    plain = [(one, box) for one, own in listed for box in own if not box.iscrowd]
    without = [(one, box) for one, box in plain if not box.has_mask]
    if len(without) == len(plain):
        return None
    if without:
        image, box = without[0]
        return (
            f"{len(without)} of {len(plain)} annotations have no `segmentation` (the first: annotation {box.id} of "
            f"{cocos[image.split].name}), so that the masks of the others were left out: a Mask R-CNN needs one for each box"
        )
    try:
        return [_runs(cocos[one.split], one, own, image) for (one, own), image in zip(listed, seen, strict=True)]
    except InvalidArchive as fault:
        return f"the masks were left out, which a Mask R-CNN needs: {fault.detail}"


def measured(
    cocos: dict[str, Coco], images: Sequence[Boxed], rows: list[list[list[float]]], masks: Sequence[Runs]
) -> list[list[list[float]]]:
    """Return every image's rows of `data.boxes`, with the pixels of the mask as area where the annotation says none."""
    boxes = {split: coco.boxes() for split, coco in cocos.items()}
    for one, own, runs in zip(images, rows, masks, strict=True):
        for box, row, run in zip(boxes[one.split][one.entry.id], own, runs, strict=True):
            if box.area is None and not box.iscrowd:
                row[AREA] = float(run[1::2].sum())
    return rows


def _runs(coco: Coco, one: Boxed, own: Sequence[CocoAnnotation], image: Inspected) -> Runs:
    pixels = len(own) * image.height * image.width
    if pixels > MOST_PIXELS:
        raise InvalidArchive(
            f"{quoted(one.name)} of {image.width}x{image.height} pixels has {len(own)} masks, {pixels} pixels in all, over the "
            f"limit of {MOST_PIXELS}: make it smaller"
        )
    return [runs_of(_mask(coco, box, (image.height, image.width))) for box in own]


def _mask(coco: Coco, box: CocoAnnotation, size: tuple[int, int]) -> Mask:
    if box.segmentation is not None and box.has_mask:
        try:
            return mask_of(box.segmentation, size, f"{quoted(coco.name)}: annotation {box.id}")
        except InvalidArchive:
            if not box.iscrowd:
                raise
    mask = np.zeros(size, bool)
    x, y, width, height = box.bbox
    mask[round(max(y, 0)) : round(y + height), round(max(x, 0)) : round(x + width)] = True
    return mask


def mask_tensors(split: str, masks: Sequence[Runs]) -> dict[str, Tensor]:
    """Return the masks of a split as a packed file has them, see `data.instance_masks.MaskRuns`."""
    every = [runs for own in masks for runs in own]
    joined = np.concatenate([np.zeros(0, np.int32), *every])
    return {
        f"{split}.mask_runs": torch.from_numpy(joined),
        f"{split}.mask_offsets": torch.tensor([0, *map(len, every)]).cumsum(0),
    }
