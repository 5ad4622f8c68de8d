"""The parts of a report that attributes have: comparisons by their mean accuracy and loss, and each attribute by itself."""

from collections.abc import Iterator
from html import escape

from wbar.results import Comparisons, JobResult
from wbar_worker.report_parts import number

NOTE = (
    "<p class='note'>Bold: the weights that a download gives. Mean accuracy: the mean over attributes of the share that got "
    "the right category. Loss: the mean over images of the mean over their attributes of the negative log-likelihood of the "
    "right category; lower is better. Calibration error: how far the stated confidence is from the share that was right; 0 is "
    "best. An attribute counts where it is known of an image. The ensemble is the mean of the networks' probabilities.</p>"
)


def has_attributes(result: JobResult) -> bool:
    """Return whether a result is of attributes."""
    return result.metrics.averaged.attributes is not None


def comparisons(result: JobResult, metrics: Comparisons, images: str) -> str:
    """Return the table of the comparisons. images: what they are from, for its head."""
    rows = "".join(
        f"<tr{' class=delivered' if name == result.delivered else ''}><td>{Comparisons.label(name)}"
        f"{' <span class=tag>download</span>' if name == result.delivered else ''}</td>"
        f"<td>{score.accuracy:.2%}</td><td>{score.loss:.4f}</td><td>{number(score.ece)}</td></tr>"
        for name, score in metrics.named().items()
    )
    head = (
        f"<tr><th>{escape(images)}</th><th>mean accuracy</th><th>loss (NLL, nats)</th>"
        "<th>calibration error (ECE)</th></tr>"
    )
    return f"<div class='wide'><table>{head}{rows}</table></div>"


def sections(result: JobResult) -> Iterator[str]:
    """Yield the accuracy and the loss of each attribute by comparison."""
    named = result.metrics.named()
    yield "<h2>Accuracy and loss, by attribute</h2>"
    head = "".join(f"<th>{Comparisons.label(name)}</th>" for name in named)
    rows = ""
    for attribute, own in (result.metrics.averaged.attributes or {}).items():
        scores = [(score.attributes or {}).get(attribute) for score in named.values()]
        cells = "".join(
            "<td>–</td>" if one is None or one.accuracy is None else f"<td>{one.accuracy:.2%}, {number(one.loss)}</td>"
            for one in scores
        )
        rows += f"<tr><td>{escape(attribute)}</td><td>{own.images:,}</td>{cells}</tr>"
    yield f"<div class='wide'><table><tr><th></th><th>images</th>{head}</tr>{rows}</table></div>"
