"""The parts of a report that regression has: comparisons by R² and loss, and the errors of each target in its own units."""

from collections.abc import Iterator
from html import escape

from wbar.results import Comparisons, JobResult
from wbar_worker.report_parts import number

NOTE = (
    "<p class='note'>Bold: the weights that a download gives. R²: 1 − Σ(ŷ − y)² / Σ(y − ȳ)², the mean over the targets that "
    "have one; 1 is best, 0 is that of always giving the mean. Loss: the mean squared error, in "
    "squared standard deviations of the targets in the training split. The ensemble is the mean of the networks' "
    "predictions.</p>"
)


def has_targets(result: JobResult) -> bool:
    """Return whether a result is of regression."""
    return result.metrics.averaged.regression is not None


def comparisons(result: JobResult, metrics: Comparisons, images: str) -> str:
    """Return the table of the comparisons. images: what they are from, for its head."""
    rows = "".join(
        f"<tr{' class=delivered' if name == result.delivered else ''}><td>{Comparisons.label(name)}"
        f"{' <span class=tag>download</span>' if name == result.delivered else ''}</td>"
        f"<td>{number(score.regression.r2 if score.regression else None)}</td><td>{score.loss:.4f}</td></tr>"
        for name, score in metrics.named().items()
    )
    head = f"<tr><th>{escape(images)}</th><th>R²</th><th>loss (standardized MSE)</th></tr>"
    return f"<div class='wide'><table>{head}{rows}</table></div>"


def sections(result: JobResult) -> Iterator[str]:
    """Yield the errors of each target by comparison."""
    yield "<h2>Errors, by target</h2>"
    head = "<tr><th>target</th><th></th><th>RMSE</th><th>MAE</th><th>MSE</th><th>R²</th></tr>"
    rows = ""
    for target in result.metrics.averaged.regression.by_target if result.metrics.averaged.regression else ():
        for name, score in result.metrics.named().items():
            one = score.regression.by_target.get(target) if score.regression else None
            if one is not None:
                values = "".join(f"<td>{value:.5g}</td>" for value in (one.rmse, one.mae, one.mse))
                rows += f"<tr><td>{escape(target)}</td><td>{Comparisons.label(name)}</td>{values}<td>{number(one.r2)}</td></tr>"
    yield f"<div class='wide'><table>{head}{rows}</table></div>"
