"""Several jobs side by side: only the options that differ, their comparisons, their series in one chart."""

from collections.abc import Sequence
from dataclasses import dataclass
from math import sqrt
from statistics import fmean, stdev
from typing import Annotated

from fastapi import APIRouter, Query, Request, Response

from wbar.errors import ValidationFailed
from wbar.measures import Measure, measure_in
from wbar.results import Comparisons, ImageLosses
from wbar_service.auth import StoreOf, TenantOf
from wbar_service.dashboard.options import options_of
from wbar_service.dashboard.pages import page
from wbar_service.dashboard.route import PageRoute
from wbar_store.database import Tenant
from wbar_store.job_records import JobRecord
from wbar_store.store import Store

router = APIRouter(include_in_schema=False, route_class=PageRoute)
FEWEST, MOST = 2, 12


@dataclass(frozen=True)
class Row:
    """One row of a table with a column for each job. best: the columns that are the best of the row."""

    label: str
    cells: tuple[str | float | None, ...]
    best: frozenset[int] = frozenset()


@router.get("/compare")
def compare(
    request: Request, store: StoreOf, tenant: TenantOf, job: Annotated[list[str] | None, Query(max_length=100)] = None
) -> Response:
    """Compare 2 to 12 jobs."""
    ids = list(dict.fromkeys(job or ()))
    if not FEWEST <= len(ids) <= MOST:
        raise ValidationFailed(
            f"{len(ids)} jobs are chosen: compare {FEWEST} to {MOST}, which are ticked in the list of jobs"
        )
    jobs = [store.jobs.get(tenant, one) for one in ids]
    return page(
        request,
        "compare.html",
        jobs=jobs,
        options=differing(jobs),
        measures=measures_of(store, tenant, jobs),
        accuracy=scores(jobs, "accuracy"),
        loss=scores(jobs, "loss"),
        differences=differences(store, jobs),
        same_images=len({images_of(one) for one in jobs if one.result}) <= 1,
    )


def measures_of(store: Store, tenant: Tenant, jobs: Sequence[JobRecord]) -> list[Measure]:
    """Return what the score of each job is."""
    tasks = store.datasets.tasks_for(tenant, [one.id for one in jobs])
    return [measure_in(tasks.get(one.id)) for one in jobs]


def differing(jobs: list[JobRecord]) -> list[Row]:
    """Return the options, checkpoints and datasets that are not the same in all jobs."""
    tables = [
        {"checkpoint": one.spec.start.id, "dataset": one.spec.dataset.id}
        | {option.path: option.value for option in options_of(one)}
        for one in jobs
    ]
    paths = dict.fromkeys(path for table in tables for path in table)
    rows = [Row(path, tuple(table.get(path) for table in tables)) for path in paths]
    return [row for row in rows if len(set(row.cells)) > 1]


def scores(jobs: list[JobRecord], number: str) -> list[Row]:
    """Return one number of every comparison, with the best job of each. number: `accuracy` or `loss`."""
    tables = [one.result.metrics.named() if one.result else {} for one in jobs]
    best_of = max if number == "accuracy" else min
    rows = []
    for name in Comparisons.model_fields:
        cells = tuple(float(getattr(table[name], number)) if name in table else None for table in tables)
        there = [cell for cell in cells if cell is not None]
        if there:
            best = best_of(there)
            winners = (
                frozenset(i for i, cell in enumerate(cells) if cell == best) if len(set(there)) > 1 else frozenset()
            )
            rows.append(Row(Comparisons.label(name), cells, winners))
    return rows


@dataclass(frozen=True)
class Difference:
    """How much a job's w̄ differs from the first job's, in mean loss over the same images, with its standard error."""

    job: str
    name: str
    images: int
    mean: float
    error: float

    @property
    def sure(self) -> bool:
        """Whether it is more than two standard errors, as for a verdict."""
        return abs(self.mean) > 2 * self.error


def images_of(job: JobRecord) -> tuple[str, int, int | None]:
    """Return what decides the images that a job reports on: the dataset, their number, and the seed where it drew them."""
    assert job.result is not None
    held_out = job.result.held_out
    return job.spec.dataset.sha256, held_out.report, job.spec.seed if held_out.selection else None


def differences(store: Store, jobs: list[JobRecord]) -> list[Difference]:
    """Return the paired differences to the first job, of the jobs that were scored on the same images."""
    first, found = jobs[0], list[Difference]()
    if not first.result or not first.losses:
        return found
    base = _losses(store, first)
    for other in jobs[1:]:
        if not other.result or not other.losses or images_of(other) != images_of(first):
            continue
        gaps = [a - b for a, b in zip(_losses(store, other), base, strict=True)]
        if len(gaps) > 1:
            error = stdev(gaps) / sqrt(len(gaps))
            found.append(Difference(other.id, other.name or other.id, len(gaps), fmean(gaps), error))
    return found


def _losses(store: Store, job: JobRecord) -> list[float]:
    assert job.losses is not None
    content = b"".join(store.blobs.chunks(job.losses, 0, store.blobs.size(job.losses)))
    return ImageLosses.model_validate_json(content).averaged
