"""The schedule of a job that is not created yet as a picture: rates over the steps, high phases shaded, snapshots marked."""

from dataclasses import dataclass

from wbar.datasets import DatasetFacts
from wbar.method import Soup
from wbar.resolve import planned_steps_per_epoch
from wbar.schedule import build_schedule
from wbar.spec import JobSpec

WIDTH, HEIGHT = 600.0, 120.0  # units of the picture
MOST_POINTS, MOST_MARKS = 600, 200


@dataclass(frozen=True)
class Picture:
    """A drawing of WIDTH × HEIGHT units.

    line: the rates, as points of a polyline. bands: left edge and width of every high phase. marks: where snapshots are
    taken. highest, lowest: rates. note: what is found only when the job runs, if anything.
    """

    line: str
    bands: tuple[tuple[float, float], ...]
    marks: tuple[float, ...]
    highest: float
    lowest: float
    steps: int
    snapshots: int
    note: str | None


def picture_of(spec: JobSpec, facts: DatasetFacts) -> Picture | None:
    """Return the picture of a resolved job; None for a soup, which does not train."""
    if isinstance(spec.method, Soup):
        return None
    schedule = build_schedule(spec.method, planned_steps_per_epoch(facts, spec.recipe))
    steps = schedule.total_steps
    stride = max(1, steps // MOST_POINTS)
    seen = [*range(0, steps, stride)]
    rates = [schedule.rate(step) for step in seen]
    highest = max(rates)
    across = WIDTH / max(1, steps)
    points = zip(seen, rates, strict=True)
    line = " ".join(f"{step * across:.1f},{HEIGHT - rate / highest * (HEIGHT - 8):.1f}" for step, rate in points)
    bands: list[tuple[float, float]] = []
    for step in seen:
        if schedule.phase(step) != "high":
            continue
        left, width = step * across, stride * across
        if bands and abs(bands[-1][0] + bands[-1][1] - left) < 1e-6:
            bands[-1] = (bands[-1][0], bands[-1][1] + width)
        else:
            bands.append((left, width))
    note = None
    if spec.method.type == "auto":
        note = "where the job finds that the start has memorised its training images, it holds the high rate longer"
    return Picture(
        line=line,
        bands=tuple(bands),
        marks=tuple(step * across for step in schedule.snapshots[:MOST_MARKS]),
        highest=highest,
        lowest=min(rates),
        steps=steps,
        snapshots=len(schedule.snapshots),
        note=note,
    )
