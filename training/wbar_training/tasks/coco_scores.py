"""COCO's average precision, by `faster-coco-eval` or `pycocotools`, whichever is installed.

AP      mean over IoU thresholds 0.5, 0.55 … 0.95 and over classes of the area below precision over recall, 101 points
sizes   small below 32², medium below 96², large, by the area of the labelled box in pixels of the image
masks   the same, where IoU is that of masks, and a detection's size that of its mask
"""

import contextlib
import io
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from types import ModuleType
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from wbar.errors import PackageMissing
from wbar.scores import BoxScore
from wbar_training.data.boxes import AREA, CLASS, CORNERS, CROWD, NO_BOX

SCORE = 5  # of a detection, in the column of a label's area
PACKAGES = ("faster_coco_eval", "pycocotools")
_SUMMARY = ("ap", "ap50", "ap75", "ap_small", "ap_medium", "ap_large")


@dataclass(frozen=True)
class Overlaps:
    """The masks of N images in numbers of pixels, which say all that an average precision needs of them.

    found: (N, D), of each detection's mask. labelled: (N, most), of each labelled one.
    both: (N, D, most), that a detection's and a labelled one have in common.
    """

    found: Tensor
    labelled: Tensor
    both: Tensor

    def iou(self, image: int, found: Tensor, labelled: Tensor, crowds: Tensor) -> NDArray[np.float64]:
        """Return intersection over union of some masks of one image; over the detection's pixels, where a crowd is labelled.

        found, labelled: bool, (D,) and (most,). crowds: bool, of those labelled.
        """
        both = self.both[image][found][:, labelled].double()
        own, other = self.found[image, found].double()[:, None], self.labelled[image, labelled].double()[None]
        either = torch.where(crowds[None], own, own + other - both)
        return np.ascontiguousarray((both / either.clamp_min(1)).numpy())

    def pixels(self, detections: Tensor) -> list[float]:
        """Return the pixels of all detections' masks, one image after another."""
        pixels: list[float] = self.found[detections[..., CLASS] != NO_BOX].tolist()
        return pixels


@cache
def evaluators() -> dict[str, tuple[Any, Any]]:
    """Return the classes of annotations and evaluation of each package that is installed, the fastest first."""
    found = dict[str, tuple[Any, Any]]()
    with contextlib.suppress(ImportError):
        from faster_coco_eval import COCO, COCOeval_faster

        found["faster_coco_eval"] = (COCO, COCOeval_faster)
    with contextlib.suppress(ImportError):
        coco, cocoeval = _pycocotools()
        found["pycocotools"] = (coco.COCO, cocoeval.COCOeval)
    return found


def _pycocotools() -> tuple[ModuleType, ModuleType]:
    from pycocotools import coco, cocoeval

    return coco, cocoeval


def check_installed() -> None:
    """Raise PackageMissing where no package computes COCO's scores."""
    if not evaluators():
        raise PackageMissing(
            "COCO's average precision needs faster-coco-eval or pycocotools, and this worker has neither: install "
            "wbar[detection] there"
        )


def box_score(
    detections: Tensor, labels: Tensor, names: list[str], package: str | None = None, overlaps: Overlaps | None = None
) -> BoxScore:
    """Return the scores of N images: of boxes, or of masks where these have been compared.

    detections: (N, D, 7), rows as of `data.boxes` with the score in the column of the area.
    labels: (N, most, 7).
    names: of the classes, the background first.
    package: that computes them; None: the first that is installed.
    overlaps: of the masks of each image; None: boxes are compared.
    """
    kinds, kind_of_evaluation = evaluators()[package] if package else next(iter(evaluators().values()))
    truth, found = _document(labels.double().numpy(), len(names)), _found(detections.double().numpy())
    with contextlib.redirect_stdout(io.StringIO()):  # pycocotools prints
        coco = kinds()
        coco.dataset = truth
        coco.createIndex()
        if not truth["annotations"]:
            return BoxScore(**dict.fromkeys(_SUMMARY), by_class=dict.fromkeys(names[1:]))
        if not found:  # neither package takes an empty list
            return _nothing_found(truth, names)
        results = coco.loadRes(found)
        if overlaps is not None:
            for one, pixels in zip(results.dataset["annotations"], overlaps.pixels(detections), strict=True):
                one["area"] = pixels
        evaluation = kind_of_evaluation(coco, results, "bbox")
        if overlaps is not None:
            evaluation.computeIoU = _by_overlaps(overlaps, detections, labels)
        evaluation.evaluate()
        evaluation.accumulate()
        evaluation.summarize()
    values = [_known(value) for value in list(evaluation.stats)[: len(_SUMMARY)]]
    # (thresholds, recalls, classes, sizes, most detections): all sizes, 100 detections
    precision: NDArray[np.float64] = evaluation.eval["precision"][:, :, :, 0, -1]
    by_class = {
        name: None if (own := precision[:, :, k][precision[:, :, k] > -1]).size == 0 else float(own.mean())
        for k, name in enumerate(names[1:])
    }
    return BoxScore(**dict(zip(_SUMMARY, values, strict=True)), by_class=by_class)


def _by_overlaps(
    overlaps: Overlaps, detections: Tensor, labels: Tensor
) -> Callable[[int, int], NDArray[np.float64] | list[float]]:
    """Return what takes the place of `computeIoU` of a package's evaluation: IoU of masks, of what is known of them."""

    def ious(image: int, category: int) -> NDArray[np.float64] | list[float]:
        found = detections[image - 1, :, CLASS] == category
        own = labels[image - 1, :, CLASS] == category
        if not bool(found.any()) or not bool(own.any()):
            return []
        crowds = labels[image - 1, own, CROWD] > 0
        return overlaps.iou(image - 1, found, own, crowds)

    return ious


def _known(value: float) -> float | None:
    """Return a score; None for COCO's −1, where no label is of that size."""
    return None if value < 0 else float(value)


def _nothing_found(truth: dict[str, Any], names: list[str]) -> BoxScore:
    counted = [one for one in truth["annotations"] if not one["iscrowd"]]
    if not counted:
        return BoxScore(**dict.fromkeys(_SUMMARY), by_class=dict.fromkeys(names[1:]))
    sizes = {"ap_small": (0, 32**2), "ap_medium": (32**2, 96**2), "ap_large": (96**2, np.inf)}
    by_size = {
        name: 0.0 if any(low <= one["area"] <= high for one in counted) else None for name, (low, high) in sizes.items()
    }
    present = {one["category_id"] for one in counted}
    by_class = {name: 0.0 if k in present else None for k, name in enumerate(names[1:], start=1)}
    return BoxScore(ap=0.0, ap50=0.0, ap75=0.0, **by_size, by_class=by_class)


def _document(labels: NDArray[np.float64], classes: int) -> dict[str, Any]:
    annotations = list[dict[str, Any]]()
    for image, boxes in enumerate(labels, start=1):
        for box in boxes[boxes[:, CLASS] != NO_BOX]:
            annotations.append(
                {
                    "id": len(annotations) + 1,
                    "image_id": image,
                    "category_id": int(box[CLASS]),
                    "bbox": _bbox(box),
                    "area": float(box[AREA]),
                    "iscrowd": int(box[CROWD]),
                }
            )
    images = [{"id": image} for image in range(1, len(labels) + 1)]
    categories = [{"id": k, "name": str(k)} for k in range(1, classes)]
    return {"info": {}, "images": images, "annotations": annotations, "categories": categories}


def _found(detections: NDArray[np.float64]) -> list[dict[str, Any]]:
    return [
        {"image_id": image, "category_id": int(box[CLASS]), "bbox": _bbox(box), "score": float(box[SCORE])}
        for image, boxes in enumerate(detections, start=1)
        for box in boxes[boxes[:, CLASS] != NO_BOX]
    ]


def _bbox(box: NDArray[np.float64]) -> list[float]:
    left, top, right, bottom = box[CORNERS].tolist()
    return [left, top, right - left, bottom - top]
