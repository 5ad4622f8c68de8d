"""The parts of a report that detection has: comparisons by COCO's average precision, also by class, and boxes to look at.

A Mask R-CNN has the same tables of its masks.
"""

from collections.abc import Callable, Iterator
from html import escape
from pathlib import Path

from wbar.results import Comparisons, JobResult
from wbar.scores import BoxScore, Score
from wbar_worker.report_parts import number, picture_section

COLUMNS = {"ap": "AP", "ap50": "AP50", "ap75": "AP75", "ap_small": "small", "ap_medium": "medium", "ap_large": "large"}
NOTE = (
    "<p class='note'>Bold: the weights that a download gives. AP: COCO's average precision, the mean over IoU thresholds from "
    "0.5 to 0.95 and over classes; AP50 and AP75: at one threshold; small, medium and large: of boxes below 32², below 96² and "
    "above, in pixels of the image. Loss: the mean over images of the network's own losses; lower is better, and the verdict "
    "is by it. No ensemble of several networks' boxes is defined: instead of one stands the mean score of the snapshots.</p>"
)


def has_boxes(result: JobResult) -> bool:
    """Return whether a result is of detection."""
    return result.metrics.averaged.boxes is not None


def comparisons(result: JobResult, metrics: Comparisons, images: str) -> str:
    """Return the table of the comparisons, and that of their masks. images: what they are from, for its head."""
    tables = _table(result, metrics, images, _of_boxes)
    if metrics.averaged.masks is not None:
        tables += "<h3>Masks</h3><p class='note'>The same by the pixels that two masks have in common.</p>"
        tables += _table(result, metrics, images, _of_masks)
    return tables


def _of_boxes(score: Score) -> BoxScore | None:
    return score.boxes


def _of_masks(score: Score) -> BoxScore | None:
    return score.masks


def _table(result: JobResult, metrics: Comparisons, images: str, found: Callable[[Score], BoxScore | None]) -> str:
    rows = ""
    for name, score in metrics.named().items():
        delivered = name == result.delivered
        cells = "".join(f"<td>{number(getattr(found(score), column, None))}</td>" for column in COLUMNS)
        rows += (
            f"<tr{' class=delivered' if delivered else ''}><td>{Comparisons.label(name)}"
            f"{' <span class=tag>download</span>' if delivered else ''}</td>{cells}<td>{score.loss:.4f}</td></tr>"
        )
    head = "".join(f"<th>{title}</th>" for title in (escape(images), *COLUMNS.values(), "loss"))
    return f"<div class='wide'><table><tr>{head}</tr>{rows}</table></div>"


def sections(result: JobResult, picture: Path | None) -> Iterator[str]:
    """Yield the AP of each class by comparison and, where there is a picture, some images with boxes."""
    yield "<h2>Average precision, by class</h2>"
    yield _by_class(result, _of_boxes)
    if result.metrics.averaged.masks is not None:
        yield "<h2>Average precision of masks, by class</h2>"
        yield _by_class(result, _of_masks)
    yield from picture_section(
        "Held-out images with their boxes, and those of start and w̄ with a score of 0.5 or more",
        "held-out images and boxes",
        picture,
    )


def _by_class(result: JobResult, found: Callable[[Score], BoxScore | None]) -> str:
    named = result.metrics.named()
    head = "".join(f"<th>{Comparisons.label(name)}</th>" for name in named)
    rows, averaged = "", found(result.metrics.averaged)
    for label in averaged.by_class if averaged else ():
        each = [found(one) for one in named.values()]
        cells = "".join(f"<td>{number(one.by_class.get(label) if one else None)}</td>" for one in each)
        rows += f"<tr><td>{escape(label)}</td>{cells}</tr>"
    return f"<div class='wide'><table><tr><th></th>{head}</tr>{rows}</table></div>"
