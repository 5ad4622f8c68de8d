"""A job's report: one self-contained HTML page with the comparisons, the curve, the schedule and the loss around w̄.

Drawn by the worker when the job has succeeded, from its spec, its result and its training series, and kept as a blob.
"""

import json
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from html import escape
from pathlib import Path
from typing import TYPE_CHECKING, Any

from wbar.choices import AlphaLine
from wbar.flatness_results import Flatness
from wbar.jobs import MetricsPoint
from wbar.measures import Measure, measure_of
from wbar.results import CALIBRATED, VERDICTS, Comparisons, JobResult
from wbar.spec import JobSpec
from wbar_worker import report_attributes as attributes
from wbar_worker import report_boxes as boxes
from wbar_worker import report_masks as masks
from wbar_worker import report_meetings as meetings
from wbar_worker import report_probe as probe
from wbar_worker import report_surface as surface
from wbar_worker import report_targets as targets

if TYPE_CHECKING:
    from plotly.graph_objects import Figure

    from wbar_averaging.figures import Units

STYLE = """
body { font: 16px/1.5 system-ui, sans-serif; color: #222; margin: 0 auto; padding: 1.5rem; max-width: 60rem }
h1 { font-size: 1.6rem; margin: 0 } h2 { font-size: 1.2rem; margin: 2.5rem 0 .5rem }
.verdict { font-weight: 600 } .note { color: #555 }
table { border-collapse: collapse; margin: 1rem 0 } th, td { padding: .3rem .9rem .3rem 0; text-align: right }
th:first-child, td:first-child { text-align: left } tr { border-bottom: 1px solid #ddd }
tr.delivered td { font-weight: 600 } pre { white-space: pre-wrap; overflow-wrap: anywhere; background: #f6f6f6; padding: 1rem }
.wide { overflow-x: auto }
.tag { border: 1px solid #999; border-radius: 4px; padding: 0 .3rem; font-weight: 400; font-size: .85em }
"""


@dataclass(frozen=True)
class ReportPage:
    """The contents of a report.

    points: the training series, in the order of its steps.
    request: what was asked for, as it was sent; None where it is not kept.
    picture: PNG, some held-out images with the answers of start and w̄; None where there is nothing to see.
    thumbnails: PNG, the probe images of `result.probe.most_changed` side by side.
    """

    job_id: str
    name: str | None
    spec: JobSpec
    result: JobResult
    points: Sequence[MetricsPoint]
    request: Mapping[str, Any] | None = None
    picture: Path | None = None
    thumbnails: Path | None = None

    def write(self, path: Path) -> None:
        """Write the page to `path`."""
        from plotly.offline import get_plotlyjs  # here, since a worker that draws no report needs none of it

        title = escape(self.name or self.job_id)
        body = "\n".join(self._sections())
        path.write_text(
            f"<!doctype html>\n<html lang='en'>\n<head>\n<meta charset='utf-8'>\n<title>{title} – wbar</title>\n"
            "<meta name='viewport' content='width=device-width, initial-scale=1'>\n"
            f"<style>{STYLE}</style>\n<script>{get_plotlyjs()}</script>\n</head>\n<body>\n{body}\n</body>\n</html>\n",
            encoding="utf-8",
        )

    def _sections(self) -> Iterator[str]:
        spec, result = self.spec, self.result
        measure = measure_of(result.metrics.averaged)
        yield f"<h1>{escape(self.name or self.job_id)}</h1>"
        ids = f"{self.job_id} · checkpoint {spec.start.id} · dataset {spec.dataset.id}"
        yield f"<p class='note'>{escape(ids)}</p>"
        yield f"<p class='verdict'>Verdict: {result.verdict} – {VERDICTS[result.verdict]}.</p>"
        yield _comparisons(result, result.metrics, f"on {result.held_out.report} held-out images")
        yield (
            boxes.NOTE
            if boxes.has_boxes(result)
            else masks.NOTE
            if masks.has_masks(result)
            else targets.NOTE
            if targets.has_targets(result)
            else attributes.NOTE
            if attributes.has_attributes(result)
            else (
                "<p class='note'>Bold: the weights that a download gives. Loss: the mean negative log-likelihood of the right "
                "class; lower is better, and confident mistakes cost most. Calibration error: how far the stated confidence is "
                f"from the share that was right; 0 is best. {CALIBRATED}</p>"
            )
        )
        yield from (f"<p class='note'>{escape(line)}</p>" for line in result.selection_in_words())
        for name, one in result.evaluation.items():
            chosen_by = "; the choices of this job were made on them" if one.selected_on else ""
            yield f"<h2>On {escape(name)}</h2>\n<p class='note'>{one.images:,} images{chosen_by}.</p>"
            yield _comparisons(result, one.metrics, f"{name}, {one.images:,} images")
        if masks.has_masks(result):
            yield from masks.sections(result, self.picture)
        if targets.has_targets(result):
            yield from targets.sections(result)
        if attributes.has_attributes(result):
            yield from attributes.sections(result)
        if boxes.has_boxes(result):
            yield from boxes.sections(result, self.picture)
        if result.probe is not None:
            yield from probe.sections(result.probe, self.thumbnails)
        yield from _curve(result)
        if result.interpolation is not None:
            yield from _line(result.interpolation, measure)
        if result.meetings:
            yield from meetings.sections(result.meetings)
        yield from _training(self.points, measure)
        if result.flatness is not None:
            yield from _flatness(result.flatness, measure)
        if self.request is not None:
            # The names are those of this tenant's objects; whatever else was left out was the service's to decide.
            sent = {name: value for name, value in self.request.items() if name not in ("name", "metadata")}
            yield f"<h2>What was asked for</h2>\n<pre>{escape(json.dumps(sent, indent=2, ensure_ascii=False))}</pre>"
        used = spec.model_dump_json(indent=2, include={"method", "recipe", "seed", "classes"})
        yield f"<h2>What it became: every option as it was used</h2>\n<pre>{escape(used)}</pre>"


def _comparisons(result: JobResult, metrics: Comparisons, images: str) -> str:
    if masks.has_masks(result):
        return masks.comparisons(result, metrics, images)
    if targets.has_targets(result):
        return targets.comparisons(result, metrics, images)
    if attributes.has_attributes(result):
        return attributes.comparisons(result, metrics, images)
    if boxes.has_boxes(result):
        return boxes.comparisons(result, metrics, images)
    rows = "".join(
        f"<tr{' class=delivered' if name == result.delivered else ''}><td>{Comparisons.label(name)}"
        f"{' <span class=tag>download</span>' if name == result.delivered else ''}</td>"
        f"<td>{score.accuracy:.2%}</td><td>{score.loss:.4f}</td><td>{_number(score.nll_calibrated, '.4f')}</td>"
        f"<td>{_number(score.temperature, '.2f')}</td><td>{_number(score.ece, '.4f')}</td></tr>"
        for name, score in metrics.named().items()
    )
    head = (
        f"<tr><th>{escape(images)}</th><th>accuracy</th><th>loss (NLL, nats)</th>"
        "<th>loss, calibrated</th><th>temperature</th><th>calibration error (ECE)</th></tr>"
    )
    return f"<div class='wide'><table>{head}{rows}</table></div>"


def _curve(result: JobResult) -> Iterator[str]:
    from wbar_averaging import figures

    # w̄ is the curve itself, and the recomputed start is too close to the start to be told apart.
    lines = [
        figures.Comparison(Comparisons.label(name), score.accuracy, score.loss)
        for name, score in result.metrics.named().items()
        if name not in ("averaged", "start_recomputed")
    ]
    yield "<h2>What averaging gives</h2>"
    yield _html(
        figures.curve_figure(
            [point.n for point in result.curve],
            [point.accuracy for point in result.curve],
            [point.loss for point in result.curve],
            comparisons=lines,
            units=_units(measure_of(result.metrics.averaged)),
        )
    )


def _line(line: AlphaLine, measure: Measure) -> Iterator[str]:
    from wbar_averaging import figures

    yield "<h2>From the start to w̄</h2>"
    rows = "".join(
        f"<tr{' class=delivered' if point.alpha == line.chosen else ''}><td>{point.alpha:g}</td>"
        f"<td>{measure.text(point.accuracy)}</td><td>{_number(point.loss, '.4f')}</td>"
        f"<td>{_number(point.selection_loss, '.4f')}</td></tr>"
        for point in line.points
    )
    head = (
        f"<tr><th>α</th><th>{measure.name}</th><th>{measure.loss} ({measure.loss_unit})</th>"
        f"<th>{measure.loss} on the selection split</th></tr>"
    )
    yield f"<div class='wide'><table>{head}{rows}</table></div>"
    if len(line.points) < 2:
        return
    losses = {"held-out": _gaps([point.loss for point in line.points])}
    if line.by == "selection":
        losses["selection split"] = _gaps([point.selection_loss for point in line.points])
    accuracies = {"held-out": _gaps([point.accuracy for point in line.points])}
    for name in line.points[-1].evaluation:
        scores = [point.evaluation.get(name) for point in line.points]
        losses[name] = _gaps([None if score is None else score.loss for score in scores])
        accuracies[name] = _gaps([None if score is None else score.accuracy for score in scores])
    alphas = [point.alpha for point in line.points]
    yield _html(figures.interpolation_figure(alphas, losses, accuracies, units=_units(measure)))


def _training(points: Sequence[MetricsPoint], measure: Measure) -> Iterator[str]:
    from wbar_averaging import figures

    if not points:
        return
    steps = [point.step for point in points]
    yield "<h2>Training</h2>"
    yield _html(figures.schedule_figure(steps, [point.lr for point in points], [point.phase for point in points]))
    yield _html(
        figures.series_figure(
            steps,
            loss=[point.loss for point in points],
            distance_to_mean=[point.distance_to_mean for point in points],
            units=_units(measure),
        )
    )


def _flatness(flatness: Flatness, measure: Measure) -> Iterator[str]:
    from wbar_averaging import figures

    yield "<h2>How flat it is</h2>"
    yield (
        f"<p>‖w̄ − w₀‖ = {flatness.distance:.4g}. Losses below are means over {flatness.images} training images without "
        "augmentation; BatchNorm statistics are recomputed at every point of a line or plane, and held fixed for "
        "sharpness and curvature.</p>"
    )
    yield _flatness_table(flatness)
    between = flatness.interpolation
    yield _html(
        figures.interpolation_figure(
            between.alphas,
            {"training": _gaps(between.train_loss), "held-out": _gaps(between.val_loss)},
            {"held-out": _gaps(between.val_accuracy)},
            units=_units(measure),
        )
    )
    yield _html(
        figures.interpolation_figure(
            flatness.line.positions,
            {Comparisons.label(name): _gaps(values) for name, values in flatness.line.loss.items()},
            ends=None,
            axis="distance along a random, filter-normalized direction",
            units=_units(measure),
            title="The loss around each of them",
        )
    )
    if flatness.plane is not None:
        marks = [figures.Point(point.x, point.y, point.name) for point in flatness.plane.points]
        title = "The training loss on the plane through start, last snapshot and w̄"
        losses, unit = [_gaps(row) for row in flatness.plane.loss], _units(measure).loss
        plane = flatness.plane.xs, flatness.plane.ys, losses, marks
        yield _html(figures.surface_figure(*plane, unit=unit, log=True, title=title))
    if flatness.surface is not None:
        yield from map(_html, surface.figures_of(flatness.surface, _units(measure).loss))
    yield _html(figures.distances_figure(flatness.distance_by_layer, relative_to=flatness.length_by_layer))
    if flatness.epochs:
        rows = "".join(
            f"<tr><td>{epoch.epoch}</td><td>{epoch.distance:.4g}</td><td>{epoch.distance_from_start:.4g}</td>"
            f"<td>{_quantiles(epoch.update_norms)}</td></tr>"
            for epoch in flatness.epochs
        )
        head = (
            "<tr><th>epoch</th><th>‖w<sub>end</sub> − w<sub>begin</sub>‖</th><th>‖w − w₀‖ at its end</th>"
            "<th>update norms: least, 10 %, 25 %, median, 75 %, 90 %, largest</th></tr>"
        )
        yield f"<div class='wide'><table>{head}{rows}</table></div>"
        yield from map(_html, surface.histograms_of(flatness.epochs))


def _quantiles(norms: list[float] | None) -> str:
    return " · ".join(f"{norm:.3g}" for norm in norms) if norms else "–"


def _flatness_table(flatness: Flatness) -> str:
    rows = ""
    for name, percent in flatness.sharpness.items():
        top = flatness.top_eigenvalue[name]
        doubt = "" if top.converged else f" (residual {top.residual:.2g}: not converged)"
        rows += f"<tr><td>{Comparisons.label(name)}</td><td>{percent:.3g} %</td><td>{top.value:.4g}{doubt}</td></tr>"
    head = "<tr><th></th><th>ε-sharpness (ε = 0.001)</th><th>top Hessian eigenvalue</th></tr>"
    return f"<div class='wide'><table>{head}{rows}</table></div>"


def _units(measure: Measure) -> "Units":
    from wbar_averaging import figures

    return figures.Units(measure.name, measure.is_share, f"loss ({measure.loss_unit})")


def _number(value: float | None, form: str = ".3g") -> str:
    return "–" if value is None else f"{value:{form}}"


def _gaps(values: Sequence[float | None]) -> list[float]:
    """Replace values that are not finite by NaN, which a plot leaves out."""
    return [math.nan if value is None else value for value in values]


def _html(figure: "Figure") -> str:
    html: str = figure.to_html(
        full_html=False, include_plotlyjs=False, config={"displaylogo": False, "responsive": True}
    )
    return html
