"""Small pictures of what the jobs of a study measured, side by side: loss surfaces on one scale, histograms on one axis."""

import math
from collections.abc import Iterator
from dataclasses import dataclass

from wbar.loss_surface import PER_DECADE, Histogram, LossSurface, Rows
from wbar.measures import MEASURES
from wbar.results import Comparisons
from wbar.study_results import StudyJobReport, StudyReport

MOST_DRAWN = 32  # jobs: the table as CSV has all of them
# Cividis (Nuñez et al. 2018), dark to light: low to high losses. The grey is of points without a finite loss.
COLOURS = (
    "#00224e", "#123570", "#3b496c", "#575d6d", "#707173", "#8a8678", "#a59c74", "#c3b369", "#e1cc55", "#fee838",
)  # fmt: skip
NO_LOSS = "#bbbbbb"


@dataclass(frozen=True)
class Drawing:
    """One surface. levels: a colour and the SVG path of the grid's squares that have it. words: what it shows, in text."""

    label: str
    points: int
    levels: tuple[tuple[str, str], ...]
    words: str


@dataclass(frozen=True)
class SurfaceRow:
    """The surfaces around one network of every job, on one split.

    lowest, highest: losses at both ends of the colours, in `unit`.
    """

    title: str
    lowest: float
    highest: float
    reach: float
    unit: str
    drawings: tuple[Drawing, ...]
    colours: tuple[str, ...] = COLOURS
    most: int = MOST_DRAWN


@dataclass(frozen=True)
class HistogramDrawing:
    """One histogram: the SVG path of its bars, 100 units high. lowest, highest: the ends of the axis that all share."""

    label: str
    bins: int
    path: str
    lowest: float
    highest: float
    words: str


def surfaces_of(report: StudyReport) -> list[SurfaceRow]:
    """Return the surfaces of a study's jobs, a row for each network and split; none where no job has any."""
    unit = next((one.loss_unit for one in MEASURES.values() if one.name == report.score), "nats")
    found = [
        (job, job.flatness.surface)
        for job in report.jobs
        if job.flatness is not None and job.flatness.surface is not None
    ][:MOST_DRAWN]
    names = dict.fromkeys(name for _, surface in found for name in surface.train_loss)
    rows = (
        _row(
            f"{Comparisons.label(name)}, {images}",
            [(job, one, losses[name]) for job, one, losses in both if name in losses],
            unit,
        )
        for name in names
        for images, both in (
            ("training images", [(job, one, one.train_loss) for job, one in found]),
            ("held-out images", [(job, one, one.val_loss) for job, one in found]),
        )
    )
    return [row for row in rows if row is not None]


def _row(title: str, found: list[tuple[StudyJobReport, LossSurface, Rows]], unit: str) -> SurfaceRow | None:
    losses = [loss for _, _, rows in found for row in rows for loss in row if loss is not None and loss > 0]
    if not losses:
        return None
    lowest, highest = min(losses), max(losses)
    drawings = tuple(
        Drawing(_label(job), len(rows), tuple(_levels(rows, lowest, highest)), _in_words(rows, unit))
        for job, _, rows in found
    )
    return SurfaceRow(title, lowest, highest, max(one.positions[-1] for _, one, _ in found), unit, drawings)


def _levels(rows: Rows, lowest: float, highest: float) -> Iterator[tuple[str, str]]:
    """Yield each colour that occurs with the path of its squares; y grows upward, as in the figures of a job's report."""
    squares: dict[str, list[str]] = {}
    for y, row in enumerate(reversed(rows)):
        for x, loss in enumerate(row):
            squares.setdefault(_colour(loss, lowest, highest), []).append(f"M{x} {y}h1v1h-1z")
    yield from ((colour, "".join(paths)) for colour, paths in squares.items())


def _colour(loss: float | None, lowest: float, highest: float) -> str:
    if loss is None:
        return NO_LOSS
    if loss <= lowest or highest <= lowest:
        return COLOURS[0]
    share = math.log(loss / lowest) / math.log(highest / lowest)
    return COLOURS[min(int(share * len(COLOURS)), len(COLOURS) - 1)]


def _in_words(rows: Rows, unit: str) -> str:
    middle = len(rows) // 2
    known = [loss for row in rows for loss in row if loss is not None]
    centre = rows[middle][middle]
    at_centre = "no finite loss" if centre is None else f"{centre:.4g} {unit}"
    return f"{at_centre} in the middle" + (f", {min(known):.4g} to {max(known):.4g} on the grid" if known else "")


def histograms_of(report: StudyReport) -> list[HistogramDrawing]:
    """Return the histograms of update norms of a study's jobs, on one axis; none where no job has any."""
    found = [
        (job, job.flatness.update_histogram)
        for job in report.jobs
        if job.flatness is not None and job.flatness.update_histogram is not None
    ][:MOST_DRAWN]
    if not found:
        return []
    first = min(one.first for _, one in found)
    end = max(one.first + len(one.counts) for _, one in found)
    lowest, highest = 10 ** (first / PER_DECADE), 10 ** (end / PER_DECADE)
    return [
        HistogramDrawing(_label(job), end - first, _bars(one, first), lowest, highest, _of_norms(one))
        for job, one in found
    ]


def _bars(histogram: Histogram, first: int) -> str:
    total = sum(histogram.counts)
    heights = (
        (histogram.first - first + at, 100 * count / total) for at, count in enumerate(histogram.counts) if count
    )
    return "".join(f"M{at} 100v-{height:.1f}h1v{height:.1f}z" for at, height in heights)


def _of_norms(histogram: Histogram) -> str:
    bins = histogram.bins()
    return f"{sum(histogram.counts):,} steps, of norms from {bins[0][0]:.2g} to {bins[-1][1]:.2g}"


def _label(job: StudyJobReport) -> str:
    return job.settings.in_words() or f"job {job.n}"
