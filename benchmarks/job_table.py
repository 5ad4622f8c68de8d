"""A table of a hundred thousand jobs: page 1,000 of a list costs what page 1 costs, and a claim costs what it always did."""

import time
from collections.abc import Callable
from statistics import median, quantiles

from sqlalchemy import insert, select

from benchmarks.serving import MINE, ApiOnly, serving
from benchmarks.table import Findings, Row, figure
from wbar_store.ids import new_id
from wbar_store.tables import job_inputs, job_metadata, jobs, studies, study_children

GOAL = 1.5
PAGE = 20
QUEUED, CHOOSING_MS = 5_000, 15
PAUSED_STUDY = {
    "tenant": MINE.name, "name": "held", "request": {}, "checkpoint": "ckpt_1", "dataset": "ds_1", "at_once": 1, "paused": True,
    "created_at": 0.0,
}  # fmt: skip


def measure(quick: bool) -> Findings:
    count, repetitions = (10_000, 50) if quick else (100_000, 400)
    with serving() as service:
        fill(service, 100)
        few = _claims(service, repetitions // 4)
        fill(service, count)
        many = _claims(service, repetitions // 4)
        rows = [_pages(service, name, filters, count, repetitions) for name, filters in FILTERS.items()]
    rows.append(
        Row(
            f"claim of a queued job, p99 of {len(many)} among {count:,}", f"{figure(1000 * _p99(many))} ms",
            f"among 100: {figure(1000 * _p99(few))} ms (medians {figure(1000 * median(many))}, {figure(1000 * median(few))})",
            f"{_p99(many) / _p99(few):.2f}",
        )
    )  # fmt: skip
    rows.append(_choosing(repetitions))
    return Findings(rows)


def _choosing(repetitions: int) -> Row:
    """Measure how long a worker takes to choose its job among many queued ones of its tenant; and where almost all are held."""
    with serving() as service:
        store = service.store
        template = store.jobs.create(MINE, service.spec, "template", {}).id
        queued = queue_up(service, template, QUEUED)
        chosen = [_timed(lambda: store.queue.first_beside(template)) for _ in range(repetitions)]
        with store.database.write() as connection:  # a study that is paused has all but the last of them
            connection.execute(insert(studies).values(id=new_id("study"), **PAUSED_STUDY))
            study = connection.execute(select(studies.c.id)).scalar_one()
            children = [
                {"study": study, "n": n, "job": job, "settings": {}} for n, job in enumerate([template, *queued[:-1]])
            ]
            connection.execute(insert(study_children), children)
        assert store.queue.first_beside(template) == queued[-1]
        passed = [_timed(lambda: store.queue.first_beside(template)) for _ in range(repetitions)]
    return Row(
        f"choosing a job among {QUEUED:,} queued ones, median of {repetitions}", f"{figure(1000 * median(chosen))} ms",
        f"p99 {figure(1000 * _p99(chosen))} ms; all but the last of them held: {figure(1000 * median(passed))} ms",
        "–", f"≤ {CHOOSING_MS} ms", 1000 * max(median(chosen), median(passed)) <= CHOOSING_MS,
    )  # fmt: skip


def queue_up(service: ApiOnly, template: str, count: int) -> list[str]:
    """Insert queued jobs of one tenant, like the template; returns their ids."""
    with service.store.database.write() as connection:
        row = dict(connection.execute(select(jobs).where(jobs.c.id == template)).mappings().one())
        ids = [new_id("job") for _ in range(count)]
        connection.execute(insert(jobs), [{**row, "id": one} for one in ids])
        needs = service.spec.needs()
        connection.execute(insert(job_inputs), [{"job": one, "input": needed} for one in ids for needed in needs])
    return ids


FILTERS = {"all jobs": {}, "status=failed": {"status": "failed"}, "metadata[team]=t3": {"metadata[team]": "t3"}}


def fill(service: ApiOnly, count: int) -> None:
    """Insert jobs as they are after their end: nine in ten succeeded, the rest failed; ten teams."""
    template = service.store.jobs.create(MINE, service.spec, "template", {"team": "t0"})
    with service.store.database.write() as connection:
        row = dict(connection.execute(select(jobs).where(jobs.c.id == template.id)).mappings().one())
        rows = [
            {
                **row,
                "id": new_id("job"),
                "name": f"job {n}",
                "status": "failed" if n % 10 == 3 else "succeeded",
                "metadata": {"team": f"t{n % 10}"},
            }
            for n in range(count)
        ]
        connection.execute(insert(jobs), rows)
        connection.execute(
            insert(job_metadata), [{"job": one["id"], "key": "team", "value": one["metadata"]["team"]} for one in rows]
        )


def _pages(service: ApiOnly, name: str, filters: dict[str, str], count: int, repetitions: int) -> Row:
    depth = 1000 if name == "all jobs" else 100
    depth = min(depth, count // PAGE // (1 if name == "all jobs" else 10) - 2)
    last = None
    for _ in range(depth * PAGE // 100):
        page = service.http.get(
            "/v1/jobs", params={**filters, "limit": 100, **({"after": last} if last else {})}
        ).json()
        last = page["last_id"]
    first, deep = list[float](), list[float]()
    for _ in range(repetitions):  # in turns
        first.append(_timed(lambda: service.http.get("/v1/jobs", params={**filters, "limit": PAGE})))
        deep.append(_timed(lambda: service.http.get("/v1/jobs", params={**filters, "limit": PAGE, "after": last})))
    ratio = max(_p99(deep) / _p99(first), _p99(first) / _p99(deep))
    return Row(
        f"page {depth:,} of {name} among {count:,}, p99 of {repetitions}", f"{figure(1000 * _p99(deep))} ms",
        f"page 1: {figure(1000 * _p99(first))} ms (medians {figure(1000 * median(deep))}, {figure(1000 * median(first))})",
        f"{ratio:.2f}", f"within {GOAL:g} ×", ratio <= GOAL,
    )  # fmt: skip


def _claims(service: ApiOnly, repetitions: int) -> list[float]:
    taken = []
    for _ in range(repetitions):
        job = service.store.jobs.create(MINE, service.spec, None, {})
        taken.append(_timed(lambda job=job: service.store.attempts.claim(job.id, 60)))  # type: ignore[misc]  # mypy does not infer a lambda with a default
        service.store.jobs.cancel(MINE, job.id)
    return taken


def _timed(work: Callable[[], object]) -> float:
    began = time.perf_counter()
    work()
    return time.perf_counter() - began


def _p99(seconds: list[float]) -> float:
    return quantiles(seconds, n=100, method="inclusive")[98]
