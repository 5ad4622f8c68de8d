"""The replicas of a job as they are now: how far each of them is, and which of them waits for others to meet."""

from collections.abc import Mapping
from typing import Any

from sqlalchemy import Connection, Row

from wbar.checkpoints import Fault
from wbar.jobs import Progress, Replica
from wbar.replicas import seed_of
from wbar.spec import JobSpec
from wbar.states import TERMINAL
from wbar_store.database import Tenant
from wbar_store.replica_slots import snapshots_of
from wbar_store.tables import jobs

_COLUMNS = [jobs.c[name] for name in ("id", "status", "progress", "error", "result_accuracy", "result_loss")]
_MEETINGS = [jobs.c.spec[("meetings", name)].as_integer().label(name) for name in ("every", "last")]


def replicas(connection: Connection, tenant: Tenant, spec: JobSpec) -> list[Replica]:
    """Return the replicas of the job with this spec, in their order."""
    query = tenant.select(jobs).where(jobs.c.id.in_(spec.replicas)).with_only_columns(*_COLUMNS, *_MEETINGS)
    found = {row.id: row for row in connection.execute(query)}
    taken = snapshots_of(connection, spec.replicas)
    on_the_way = [taken[one] for one, row in found.items() if row.status not in TERMINAL]
    shown = [_replica(n, one, spec.seed, found.get(one)) for n, one in enumerate(spec.replicas, start=1)]
    return [
        one.model_copy(update=_round(found[one.job], taken[one.job], min(on_the_way, default=0)))
        if one.job in found
        else one
        for one in shown
    ]


def _replica(n: int, job_id: str, seed: int, row: Row[Any] | None) -> Replica:
    if row is None:
        return Replica(n=n, job=job_id, seed=seed_of(seed, n), status="deleted", fraction=0.0)
    progress = Progress.model_validate(row.progress) if row.progress else None
    return Replica(
        n=n,
        job=job_id,
        seed=seed_of(seed, n),
        status=row.status,
        fraction=1.0 if row.status == "succeeded" else (progress.fraction if progress else 0.0),
        error=Fault.model_validate(row.error).code if row.error else None,
        accuracy=row.result_accuracy,
        loss=row.result_loss,
    )


def _round(row: Row[Any], taken: int, least: int) -> Mapping[str, object]:
    """Return the fields of a replica that say where it is between the meetings; none where it meets no others.

    taken: the snapshots that it has. least: that any replica has that has not ended.
    """
    every, last = row.every, row.last
    if every is None:
        return {}
    waits = row.status == "queued" and taken % every == 0 and least < taken <= last
    rounds = last // every + 1
    return {"round": min(taken // every + (not waits), rounds), "rounds": rounds, "waits": waits}
