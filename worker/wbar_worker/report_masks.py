"""The parts of a report that segmentation has: comparisons by pixels, intersections over unions, and masks to look at."""

from collections.abc import Iterator
from html import escape
from pathlib import Path

from wbar.results import Comparisons, JobResult
from wbar_worker.report_parts import number, picture_section

NOTE = (
    "<p class='note'>Bold: the weights that a download gives. Accuracy: the share of labelled pixels that are right. Loss: the "
    "mean over images of the mean negative log-likelihood of the right class; lower is better. IoU: the pixels of a class by "
    "labels and by outputs, over those by either. Void pixels count nowhere.</p>"
)


def has_masks(result: JobResult) -> bool:
    """Return whether a result is of segmentation."""
    return result.metrics.averaged.mean_iou is not None


def comparisons(result: JobResult, metrics: Comparisons, images: str) -> str:
    """Return the table of the comparisons. images: what they are from, for its head."""
    rows = "".join(
        f"<tr{' class=delivered' if name == result.delivered else ''}><td>{Comparisons.label(name)}"
        f"{' <span class=tag>download</span>' if name == result.delivered else ''}</td>"
        f"<td>{score.accuracy:.2%}</td><td>{score.loss:.4f}</td><td>{number(score.mean_iou)}</td></tr>"
        for name, score in metrics.named().items()
    )
    head = f"<tr><th>{escape(images)}</th><th>pixel accuracy</th><th>loss (NLL, nats)</th><th>mean IoU</th></tr>"
    return f"<div class='wide'><table>{head}{rows}</table></div>"


def sections(result: JobResult, picture: Path | None) -> Iterator[str]:
    """Yield the IoU of each class by comparison and, where there is a picture, some images with their masks."""
    named = result.metrics.named()
    yield "<h2>Intersection over union, by class</h2>"
    head = "".join(f"<th>{Comparisons.label(name)}</th>" for name in named)
    rows = ""
    for label in result.metrics.averaged.iou or {}:
        cells = "".join(f"<td>{number((one.iou or {}).get(label))}</td>" for one in named.values())
        rows += f"<tr><td>{escape(label)}</td>{cells}</tr>"
    means = "".join(f"<td>{number(one.mean_iou)}</td>" for one in named.values())
    yield f"<div class='wide'><table><tr><th></th>{head}</tr>{rows}<tr><td><b>mean</b></td>{means}</tr></table></div>"
    yield from picture_section(
        "Held-out images, their masks, and those of start and w̄", "held-out images and masks", picture
    )
