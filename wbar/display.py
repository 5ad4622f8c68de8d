"""Output in the terminal: the live progress of a job, and the table of the comparisons."""

import json
from collections.abc import Iterable
from typing import Self

from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, DownloadColumn, Progress, TaskProgressColumn, TextColumn, TransferSpeedColumn
from rich.table import Table

from wbar.comparing import ComparedScore, JobComparison
from wbar.jobs import Event, Job
from wbar.jobs import Progress as JobPosition
from wbar.measures import MEASURES, measure_of
from wbar.results import VERDICTS, Comparisons, JobResult
from wbar.scores import Score
from wbar.states import TERMINAL

SPARKS = "▁▂▃▄▅▆▇█"


def transfer(console: Console) -> Progress:
    """Return a progress bar that counts transferred bytes."""
    return Progress(
        TextColumn("{task.description}"), BarColumn(), DownloadColumn(), TransferSpeedColumn(), console=console
    )


class JobProgress:
    """The bar of one job in a terminal. Used as a context manager."""

    def __init__(self, console: Console) -> None:
        self._bar = Progress(
            TextColumn("{task.description}"),
            BarColumn(bar_width=24),
            TaskProgressColumn(),
            TextColumn("{task.fields[detail]}"),
            console=console,
        )
        self._task = self._bar.add_task("waiting", total=1.0, detail="")

    def show(self, job: Job) -> None:
        """Show a job as it is now."""
        if job.progress is not None:
            self.progress(job.progress)
        if job.status != "running":
            self.status(job.status)

    def progress(self, at: JobPosition) -> None:
        """Show how far a job is."""
        place = f"cycle {at.cycle}/{at.cycles} · {at.phase}" if at.cycle else at.phase
        self._bar.update(self._task, completed=at.fraction, description=place, detail=_detail(at))

    def status(self, status: str) -> None:
        """Show a job's new status."""
        if status == "succeeded":
            self._bar.update(self._task, completed=1.0, detail="")
        self._bar.update(self._task, description=status)

    def print(self, line: str, style: str | None = None) -> None:
        """Print a line above the bar."""
        self._bar.console.print(line, style=style, markup=False)

    def __enter__(self) -> Self:
        self._bar.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._bar.stop()


def follow(events: Iterable[Event], console: Console) -> str:
    """Show a job's events as they come: one bar, and a line for each lasting event. Returns the job's last status."""
    with JobProgress(console) as bar:
        for event in events:
            if event.type == "progress":
                bar.progress(JobPosition.model_validate(event.data))
            elif event.type == "status":
                status = str(event.data["status"])
                bar.status(status)
                if status in TERMINAL:
                    return status
            else:
                dim = "dim" if event.type == "log" else None
                bar.print(line_of(event), "yellow" if event.data.get("level") == "warning" else dim)
    return "unknown"


def line_of(event: Event) -> str:
    """Return an event as one line of text."""
    data = event.data
    if event.type == "snapshot":
        score = Score.model_validate(data["metrics"])
        return f"snapshot {data['n']} at step {data['step']}: {measure_of(score).named(score.accuracy)}, loss {score.loss:.4f}"
    if event.type == "metrics":
        score = Score.model_validate(data)
        return f"  mean of {data['n']}: {measure_of(score).named(score.accuracy)}, loss {score.loss:.4f}"
    if event.type == "progress":
        at = JobPosition.model_validate(data)
        place = f"cycle {at.cycle}/{at.cycles} · {at.phase}" if at.cycle else at.phase
        return f"{at.fraction:.0%} {place} · step {at.step}/{at.total_steps} {_detail(at)}".rstrip()
    return str(data["status"] if event.type == "status" else data["message"])


def _detail(at: JobPosition) -> str:
    parts = []
    if at.learning_rate is not None:
        parts.append(f"lr {at.learning_rate:.4g}")
    if at.loss is not None:
        parts.append(f"loss {at.loss:.4f}")
    if at.images_per_second is not None:
        parts.append(f"{at.images_per_second:.0f} img/s")
    if at.eta_seconds is not None:
        parts.append(f"ETA {at.eta_seconds:.0f} s")
    return " · ".join(parts)


def comparison(job: Job) -> Table:
    """Return a table of the comparisons, on held-out images: `calibrated` is the NLL at the temperature T."""
    assert job.result is not None
    table = Table(title=escape(f"{job.name or job.id}: held-out images"), title_justify="left")
    several = job.result.metrics.averaged.map is not None  # labels per image
    if job.result.metrics.averaged.mean_iou is not None:
        return _of_pixels(job.result, table)
    if job.result.metrics.averaged.boxes is not None:
        return _of_boxes(job.result, table)
    if job.result.metrics.averaged.regression is not None:
        return _of_targets(job.result, table)
    if job.result.metrics.averaged.attributes is not None:
        return _of_attributes(job.result, table)
    for column in ("", "accuracy", "NLL", "calibrated", "T", "ECE", *(["mAP"] if several else [])):
        table.add_column(column, justify="left" if not column else "right")
    for name, score in job.result.metrics.named().items():
        precision = [number(score.map, 4)] if several else []
        style = "bold" if name == "averaged" else ""
        table.add_row(
            Comparisons.label(name),
            f"{score.accuracy:.2%}",
            f"{score.loss:.4f}",
            number(score.nll_calibrated, 4),
            number(score.temperature, 2),
            number(score.ece, 4),
            *precision,
            style=style,
        )
    return table


def _of_pixels(result: JobResult, table: Table) -> Table:
    for column in ("", "pixel accuracy", "NLL", "mean IoU"):
        table.add_column(column, justify="left" if not column else "right")
    for name, score in result.metrics.named().items():
        style = "bold" if name == "averaged" else ""
        table.add_row(
            Comparisons.label(name),
            f"{score.accuracy:.2%}",
            f"{score.loss:.4f}",
            number(score.mean_iou, 4),
            style=style,
        )
    return table


def _of_boxes(result: JobResult, table: Table) -> Table:
    masked = result.metrics.averaged.masks is not None
    columns = (
        "",
        "AP",
        "AP50",
        "AP75",
        "small",
        "medium",
        "large",
        *(("mask AP", "mask AP50") if masked else ()),
        "loss",
    )
    for column in columns:
        table.add_column(column, justify="left" if not column else "right")
    for name, score in result.metrics.named().items():
        found = score.boxes
        values = (found.ap, found.ap50, found.ap75, found.ap_small, found.ap_medium, found.ap_large) if found else ()
        cells = [number(value, 4) for value in values or (None,) * 6]
        if masked:
            cells += [number(getattr(score.masks, name, None), 4) for name in ("ap", "ap50")]
        table.add_row(Comparisons.label(name), *cells, f"{score.loss:.4f}", style="bold" if name == "averaged" else "")
    return table


def _of_targets(result: JobResult, table: Table) -> Table:
    targets = result.metrics.averaged.regression
    names = list(targets.by_target) if targets else []
    for column in ("", "R²", "loss", *(f"RMSE of {escape(name)}" for name in names[:5])):
        table.add_column(column, justify="left" if not column else "right")
    for name, score in result.metrics.named().items():
        errors = score.regression
        cells = [f"{errors.by_target[one].rmse:.5g}" for one in names[:5]] if errors else []
        r2 = number(errors.r2 if errors else None, 4)
        style = "bold" if name == "averaged" else ""
        table.add_row(Comparisons.label(name), r2, f"{score.loss:.4f}", *cells, style=style)
    return table


def _of_attributes(result: JobResult, table: Table) -> Table:
    attributes = list(result.metrics.averaged.attributes or {})[:5]
    for column in ("", "mean accuracy", "NLL", "ECE", *map(escape, attributes)):
        table.add_column(column, justify="left" if not column else "right")
    for name, score in result.metrics.named().items():
        each = score.attributes or {}
        found = [each[one].accuracy if one in each else None for one in attributes]
        cells = ["–" if accuracy is None else f"{accuracy:.2%}" for accuracy in found]
        style = "bold" if name == "averaged" else ""
        label = Comparisons.label(name)
        table.add_row(label, f"{score.accuracy:.2%}", f"{score.loss:.4f}", number(score.ece, 4), *cells, style=style)
    return table


def evaluation(job: Job) -> Table | None:
    """Return a table of the comparisons on the evaluation sets, score and loss; None where there is none."""
    assert job.result is not None
    sets = job.result.evaluation
    if not sets:
        return None
    measure = measure_of(job.result.metrics.averaged)
    table = Table(title=f"Evaluation sets: {measure.name}, {measure.loss}", title_justify="left")
    table.add_column("")
    for name, one in sets.items():
        chosen_by = ", selected on" if one.selected_on else ""
        table.add_column(escape(f"{name} ({one.images:,}{chosen_by})"), justify="right")
    for name in job.result.metrics.named():
        scores = [one.metrics.named().get(name) for one in sets.values()]
        cells = ("–" if score is None else f"{measure.text(score.accuracy)} {score.loss:.4f}" for score in scores)
        table.add_row(Comparisons.label(name), *cells, style="bold" if name == "averaged" else "")
    return table


def side_by_side(made: JobComparison) -> list[Table]:
    """Return the tables of jobs side by side: the options that differ, the comparisons."""
    options, scores = (Table(title=title, title_justify="left") for title in ("Options that differ", "Held-out images"))
    for table in (options, scores):
        table.add_column("")
        for job in made.jobs:
            table.add_column(escape("\n".join(part for part in (job.id, job.name) if part)), overflow="fold")
    for option in made.options:
        options.add_row(escape(option.option), *(escape(_value(value)) for value in option.values))
    scores.add_row("status", *(job.status for job in made.jobs))
    scores.add_row("verdict", *(job.verdict or "–" for job in made.jobs))
    scores.add_row("images", *("–" if job.held_out is None else f"{job.held_out:,}" for job in made.jobs))
    for row in made.comparisons:
        style = "bold" if row.name == "averaged" else ""
        measures = list(dict.fromkeys(MEASURES[score.task] for score in row.scores if score is not None))
        name = " / ".join(dict.fromkeys(one.name for one in measures))
        loss = " / ".join(dict.fromkeys(one.loss for one in measures))
        scores.add_row(f"{row.label}, {name}", *(_accuracy(score) for score in row.scores), style=style)
        scores.add_row(
            f"{row.label}, {loss}",
            *(number(None if score is None else score.loss, 4) for score in row.scores),
            style=style,
        )
    return [options, scores] if made.options else [scores]


def _accuracy(score: ComparedScore | None) -> str:
    if score is None:
        return "–"
    measure = MEASURES[score.task]
    error = "" if score.accuracy_error is None else f" ± {measure.text(score.accuracy_error)}"
    return f"{measure.text(score.accuracy)}{error}"


def _value(value: object) -> str:
    return "–" if value is None else value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)


def number(value: float | None, digits: int) -> str:
    """Return a number as text, a dash for none."""
    return "–" if value is None else f"{value:.{digits}f}"


def summary(result: JobResult) -> list[str]:
    """Return the selection, the curve over n and the verdict, as lines."""
    losses = [point.loss for point in result.curve]
    low, high = min(losses), max(losses)
    marks = "".join(SPARKS[round((loss - low) / (high - low) * 7) if high > low else 0] for loss in losses)
    measure = measure_of(result.metrics.averaged)
    points = "  ".join(f"{point.n}: {measure.text(point.accuracy)}/{point.loss:.4f}" for point in result.curve)
    line = result.interpolation
    points_of_line = "  ".join(
        f"{one.alpha:g}: {measure.text(one.accuracy)}/{number(one.loss, 4)}" for one in (line.points if line else [])
    )
    # What was recomputed for the start changed its numbers, so the network has BatchNorm.
    has_batch_norm = result.metrics.start_recomputed != result.metrics.start
    recomputed = ", BatchNorm recomputed for it; a snapshot by itself has its own" if has_batch_norm else ""
    return [
        *result.selection_in_words(),
        *([f"line (α: {measure.name}/{measure.loss}, from the start to w̄)  {points_of_line}"] if line else []),
        f"curve (n: {measure.name}/{measure.loss} of the mean of n snapshots{recomputed})  {points}",
        f"{measure.loss} over n  {marks}  ({losses[0]:.4f} → {losses[-1]:.4f})",
        f"verdict: {VERDICTS[result.verdict]} (paired per-image loss on held-out images)",
    ]
