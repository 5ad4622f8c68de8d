"""Images that annotations list, and the masks of their boxes, where every box has one."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from wbar_averaging.quoting import quoted
from wbar_training.data.decoding import Inspected
from wbar_training.data.instance_masks import runs_of
from wbar_training.uploads.coco import Coco, CocoAnnotation, CocoImage
from wbar_training.uploads.coco_masks import Mask, mask_of

Runs = list[NDArray[np.int32]]  # of each box of an image


@dataclass(frozen=True)
class Boxed:
    """An image file, still encoded, with its entry in the annotations."""

    split: str
    name: str
    data: bytes
    entry: CocoImage


def masks_of(cocos: dict[str, Coco], images: Sequence[Boxed], seen: Sequence[Inspected]) -> list[Runs] | str | None:
    """Return the masks of every image's boxes as runs; None where no box has one; a warning where only some do.

    A crowd without a mask has all of its box, since it is neither learned nor counted.

    Raises InvalidArchive for a mask that is none, see `coco_masks.mask_of`.
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
    return [
        [runs_of(_mask(cocos[one.split], box, (image.height, image.width))) for box in own]
        for (one, own), image in zip(listed, seen, strict=True)
    ]


def _mask(coco: Coco, box: CocoAnnotation, size: tuple[int, int]) -> Mask:
    if box.segmentation is not None and box.has_mask:
        return mask_of(box.segmentation, size, f"{quoted(coco.name)}: annotation {box.id}")
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
