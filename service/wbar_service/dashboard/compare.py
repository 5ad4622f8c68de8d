"""Several jobs side by side: only the options that differ, their comparisons, their series in one chart."""

from dataclasses import dataclass
from typing import Annotated

from fastapi import APIRouter, Query, Request, Response

from wbar.errors import ValidationFailed
from wbar.results import Comparisons
from wbar_service.auth import StoreOf, TenantOf
from wbar_service.dashboard.options import options_of
from wbar_service.dashboard.pages import page
from wbar_service.dashboard.route import PageRoute
from wbar_store.jobs import JobRecord

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
        accuracy=scores(jobs, "accuracy"),
        loss=scores(jobs, "loss"),
        differences=[],
        same_images=len({(one.spec.dataset.sha256, _report_images(one)) for one in jobs if one.result}) <= 1,
    )


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


def _report_images(job: JobRecord) -> int:
    return job.result.held_out.report if job.result else 0
