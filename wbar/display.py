"""Output in the terminal: the live progress of a job, and the table of the comparisons."""

from collections.abc import Iterable

from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, DownloadColumn, Progress, TaskProgressColumn, TextColumn, TransferSpeedColumn
from rich.table import Table

from wbar.jobs import Event, Job
from wbar.results import VERDICTS, Comparisons, JobResult
from wbar.states import TERMINAL

SPARKS = "▁▂▃▄▅▆▇█"


def transfer(console: Console) -> Progress:
    """Return a progress bar that counts transferred bytes."""
    return Progress(
        TextColumn("{task.description}"), BarColumn(), DownloadColumn(), TransferSpeedColumn(), console=console
    )


def follow(events: Iterable[Event], console: Console) -> str:
    """Show a job's events as they come: one bar, and a line for each lasting event. Returns the job's last status."""
    bar = Progress(
        TextColumn("{task.description}"), BarColumn(bar_width=24), TaskProgressColumn(), TextColumn("{task.fields[detail]}"),
        console=console,
    )  # fmt: skip
    with bar:
        task = bar.add_task("waiting", total=1.0, detail="")
        for event in events:
            data = event.data
            if event.type == "progress":
                place = f"cycle {data['cycle']}/{data['cycles']} · {data['phase']}" if data["cycle"] else data["phase"]
                bar.update(task, completed=data["fraction"], description=place, detail=_detail(data))
            elif event.type == "snapshot":
                score = data["metrics"]
                bar.console.print(
                    f"snapshot {data['n']} at step {data['step']}: accuracy {score['accuracy']:.2%}, loss {score['loss']:.4f}"
                )
            elif event.type == "metrics":
                bar.console.print(f"  mean of {data['n']}: accuracy {data['accuracy']:.2%}, loss {data['loss']:.4f}")
            elif event.type == "log":
                style = "yellow" if data["level"] == "warning" else "dim"
                bar.console.print(str(data["message"]), style=style, markup=False)
            elif event.type == "status":
                status = str(data["status"])
                if status == "succeeded":
                    bar.update(task, completed=1.0, detail="")
                bar.update(task, description=status)
                if status in TERMINAL:
                    return status
    return "unknown"


def _detail(data: dict[str, object]) -> str:
    parts = []
    if data.get("learning_rate") is not None:
        parts.append(f"lr {data['learning_rate']:.4g}")
    if data.get("loss") is not None:
        parts.append(f"loss {data['loss']:.4f}")
    if data.get("images_per_second") is not None:
        parts.append(f"{data['images_per_second']:.0f} img/s")
    if data.get("eta_seconds") is not None:
        parts.append(f"ETA {data['eta_seconds']:.0f} s")
    return " · ".join(parts)


def comparison(job: Job) -> Table:
    """Return a table of the comparisons, on held-out images: `calibrated` is the NLL at the temperature T."""
    assert job.result is not None
    table = Table(title=escape(f"{job.name or job.id}: held-out images"), title_justify="left")
    several = job.result.metrics.averaged.map is not None  # labels per image
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
            f"{score.ece:.4f}",
            *precision,
            style=style,
        )
    return table


def number(value: float | None, digits: int) -> str:
    """Return a number as text, a dash for none."""
    return "–" if value is None else f"{value:.{digits}f}"


def summary(result: JobResult) -> list[str]:
    """Return the selection, the curve over n and the verdict, as lines."""
    losses = [point.loss for point in result.curve]
    low, high = min(losses), max(losses)
    marks = "".join(SPARKS[round((loss - low) / (high - low) * 7) if high > low else 0] for loss in losses)
    points = "  ".join(f"{point.n}: {point.accuracy:.2%}/{point.loss:.4f}" for point in result.curve)
    return [
        *result.selection_in_words(),
        f"curve (n: accuracy/NLL of the mean of n snapshots)  {points}",
        f"NLL over n  {marks}  ({losses[0]:.4f} → {losses[-1]:.4f})",
        f"verdict: {VERDICTS[result.verdict]} (paired per-image loss on held-out images)",
    ]
