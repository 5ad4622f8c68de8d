"""A job's report: one HTML page that needs nothing else, with the arms, the curve, the schedule and the loss around w̄.

Drawn by the worker when the job has succeeded, from the job's row and its training series, and kept as a blob.
"""

import json
import math
from collections.abc import Iterator, Mapping, Sequence
from html import escape
from pathlib import Path
from typing import Any

from sqlalchemy import Row

STYLE = """
body { font: 16px/1.5 system-ui, sans-serif; color: #222; margin: 0 auto; padding: 1.5rem; max-width: 60rem }
h1 { font-size: 1.6rem; margin: 0 } h2 { font-size: 1.2rem; margin: 2.5rem 0 .5rem }
.verdict { font-weight: 600 } .note { color: #555 }
table { border-collapse: collapse; margin: 1rem 0 } th, td { padding: .3rem .9rem .3rem 0; text-align: right }
th:first-child, td:first-child { text-align: left } tr { border-bottom: 1px solid #ddd }
tr.chosen td { font-weight: 600 } pre { white-space: pre-wrap; overflow-wrap: anywhere; background: #f6f6f6; padding: 1rem }
.wide { overflow-x: auto }
"""
ARMS = {
    "start": "start, as it came",
    "start_recomputed": "start, BatchNorm recomputed",
    "last": "last snapshot",
    "averaged": "averaged weights w̄",
    "ensemble": "ensemble of the snapshots' outputs",
    "swag": "Bayesian average (SWAG)",
    "control": "control: cosine fine-tune of equal length",
}
VERDICTS = {
    "better": "w̄ is better than the start on held-out images",
    "same": "w̄ and the start cannot be told apart on held-out images",
    "worse": "w̄ is worse than the start on held-out images",
}


def write_report(path: Path, job: Row[Any], result: Mapping[str, Any], points: Sequence[Mapping[str, Any]]) -> None:
    """Write the page. job: the job's row; result: as it is sent; points: the training series."""
    from plotly.offline import get_plotlyjs  # here, since a worker that draws no report needs none of it

    title = escape(job.name or job.id)
    body = "\n".join(_sections(job, result, points))
    path.write_text(
        f"<!doctype html>\n<html lang='en'>\n<head>\n<meta charset='utf-8'>\n<title>{title} – wbar</title>\n"
        "<meta name='viewport' content='width=device-width, initial-scale=1'>\n"
        f"<style>{STYLE}</style>\n<script>{get_plotlyjs()}</script>\n</head>\n<body>\n{body}\n</body>\n</html>\n",
        encoding="utf-8",
    )


def _sections(job: Row[Any], result: Mapping[str, Any], points: Sequence[Mapping[str, Any]]) -> Iterator[str]:
    yield f"<h1>{escape(job.name or job.id)}</h1>"
    yield f"<p class='note'>{escape(job.id)} · checkpoint {escape(job.checkpoint)} · dataset {escape(job.dataset)}</p>"
    yield f"<p class='verdict'>Verdict: {result['verdict']} – {VERDICTS[result['verdict']]}.</p>"
    yield _arms(result["metrics"])
    yield from _chosen(result)
    if result.get("chosen"):
        yield f"<p>In the soup: {escape(', '.join(result['chosen']))}.</p>"
    yield from _curve(result)
    yield from _training(points)
    if result.get("flatness"):
        yield from _flatness(result["flatness"])
    asked = {"method": job.method, "recipe": job.recipe, "seed": job.seed, "classes": job.classes}
    yield f"<h2>What was asked for</h2>\n<pre>{escape(json.dumps(asked, indent=2, ensure_ascii=False))}</pre>"


def _chosen(result: Mapping[str, Any]) -> Iterator[str]:
    """What was chosen by held-out images, and how many of them the numbers are from."""
    if result.get("selected") == "start":
        yield "<p class='verdict'>The guard chose the start: the weights to download are the start's.</p>"
    choice, held_out = result.get("choice"), result.get("held_out")
    if choice:
        kept = ", ".join(str(n) for n in choice["kept"])
        yield f"<p>In the mean: {kept} of {choice['of']} (loss {choice['loss']:.4f} where they were chosen).</p>"
    if held_out and held_out["choose"]:
        yield (
            f"<p class='note'>{held_out['choose']} held-out images were set aside for choosing; every number here is from the "
            f"other {held_out['report']}.</p>"
        )


def _arms(metrics: Mapping[str, Any]) -> str:
    rows = "".join(
        f"<tr{' class=chosen' if arm == 'averaged' else ''}><td>{name}</td><td>{metrics[arm]['accuracy']:.2%}</td>"
        f"<td>{metrics[arm]['loss']:.4f}</td><td>{metrics[arm]['ece']:.4f}</td></tr>"
        for arm, name in ARMS.items()
        if metrics.get(arm)
    )
    head = "<tr><th>held-out images</th><th>accuracy</th><th>NLL (nats)</th><th>calibration error</th></tr>"
    return f"<div class='wide'><table>{head}{rows}</table></div>"


def _curve(result: Mapping[str, Any]) -> Iterator[str]:
    from wbar_averaging import figures

    curve, metrics = result["curve"], result["metrics"]
    arms = [
        figures.Arm(name, metrics[arm]["accuracy"], metrics[arm]["loss"])
        for arm, name in ARMS.items()
        if arm not in ("averaged", "start_recomputed") and metrics.get(arm)
    ]
    yield "<h2>What averaging gives</h2>"
    yield _html(
        figures.curve_figure(
            [point["n"] for point in curve],
            [point["accuracy"] for point in curve],
            [point["loss"] for point in curve],
            arms=arms,
        )
    )


def _training(points: Sequence[Mapping[str, Any]]) -> Iterator[str]:
    from wbar_averaging import figures

    if not points:
        return
    column = {name: [point[name] for point in points] for name in ("step", "lr", "phase", "loss", "distance_to_mean")}
    yield "<h2>Training</h2>"
    yield _html(figures.schedule_figure(column["step"], column["lr"], column["phase"]))
    yield _html(figures.series_figure(column["step"], loss=column["loss"], distance_to_mean=column["distance_to_mean"]))


def _flatness(found: Mapping[str, Any]) -> Iterator[str]:
    from wbar_averaging import figures

    yield "<h2>How flat it is</h2>"
    yield (
        f"<p>‖w̄ − w₀‖ = {found['distance']:.4g}. Losses below are means over {found['images']} training images without "
        "augmentation; BatchNorm statistics are recomputed at every point of a line or plane, and held fixed for "
        "sharpness and curvature.</p>"
    )
    yield _flatness_table(found)
    between = found["interpolation"]
    yield _html(
        figures.interpolation_figure(
            between["alphas"],
            {"training": _gaps(between["train_loss"]), "held-out": _gaps(between["val_loss"])},
            {"held-out": _gaps(between["val_accuracy"])},
        )
    )
    yield _html(
        figures.interpolation_figure(
            found["line"]["positions"],
            {name: _gaps(values) for name, values in found["line"]["loss"].items()},
            ends=None,
            axis="distance along a random, filter-normalized direction",
            title="The loss around each arm",
        )
    )
    plane = found.get("plane")
    if plane:
        marks = [figures.Point(point["x"], point["y"], point["name"]) for point in plane["points"]]
        title = "The training loss on the plane through start, last snapshot and w̄"
        yield _html(
            figures.surface_figure(
                plane["xs"], plane["ys"], [_gaps(row) for row in plane["loss"]], marks, log=True, title=title
            )
        )
    yield _html(figures.distances_figure(found["distance_by_layer"], relative_to=found["length_by_layer"]))
    if found["epochs"]:
        rows = "".join(
            f"<tr><td>{epoch['epoch']}</td><td>{epoch['distance']:.4g}</td><td>{_number(epoch['median_update'])}</td></tr>"
            for epoch in found["epochs"]
        )
        head = "<tr><th>epoch</th><th>‖w − w₀‖ at its end</th><th>median update norm</th></tr>"
        yield f"<div class='wide'><table>{head}{rows}</table></div>"


def _flatness_table(found: Mapping[str, Any]) -> str:
    rows = ""
    for arm, percent in found["sharpness"].items():
        top = found["top_eigenvalue"][arm]
        doubt = "" if top["converged"] else f" (residual {top['residual']:.2g}: not converged)"
        rows += f"<tr><td>{ARMS[arm]}</td><td>{percent:.3g} %</td><td>{top['value']:.4g}{doubt}</td></tr>"
    head = "<tr><th></th><th>ε-sharpness (ε = 0.001)</th><th>top Hessian eigenvalue</th></tr>"
    return f"<div class='wide'><table>{head}{rows}</table></div>"


def _number(value: float | None) -> str:
    return "–" if value is None else f"{value:.3g}"


def _gaps(values: Sequence[float | None]) -> list[float]:
    """Points without a finite value are gaps in a plot."""
    return [math.nan if value is None else value for value in values]


def _html(figure: Any) -> str:
    html: str = figure.to_html(
        full_html=False, include_plotlyjs=False, config={"displaylogo": False, "responsive": True}
    )
    return html
