"""The outbox: a change of status and the deliveries that tell of it are one transaction, so that no event is ever lost.

Other repositories call it inside the block of the change. A tenant without webhooks costs one look-up by its index.
"""

import logging
from typing import Literal

from pydantic import ValidationError
from sqlalchemy import Connection, ScalarSelect, Table, insert, literal, select

from wbar.merges import MergeStatus
from wbar.states import UploadStatus
from wbar.webhooks import (
    DAY,
    PING,
    JobSummary,
    MergeSummary,
    StudySummary,
    UploadSummary,
    WebhookEvent,
    WebhookSummary,
    matches,
)
from wbar_store.database import now, rfc3339
from wbar_store.ids import new_id
from wbar_store.tables import jobs, merges, webhook_deliveries, webhooks

log = logging.getLogger("wbar.store")

RETRY_SECONDS = float(DAY)  # after an event, or a replay, for which its delivery is tried again


def job_moved(connection: Connection, job_id: str) -> None:
    """Write the deliveries that tell of a job's status as it now is."""
    of_job = jobs.c.id == job_id
    status = connection.execute(select(jobs.c.status).where(of_job)).scalar_one()
    subscribed, at = _subscribed(connection, select(jobs.c.tenant).where(of_job).scalar_subquery(), f"job.{status}")
    if not subscribed:
        return
    row = connection.execute(
        select(*(jobs.c[name] for name in JobSummary.model_fields if name in jobs.c)).where(of_job)
    ).one()
    times = {name: rfc3339(getattr(row, name)) for name in ("created_at", "started_at", "finished_at")}
    try:
        summary = JobSummary.model_validate({**row._mapping, **times})
    except ValidationError as error:
        # What a hand or a restore left in the row must not keep the job from going on.
        log.error("%s cannot be read: no webhook is told (%s)", job_id, type(error).__name__)
        return
    _write(connection, subscribed, WebhookEvent(type=f"job.{status}", timestamp=rfc3339(at), data=summary), at)


def upload_settled(
    connection: Connection, table: Table, kind: Literal["checkpoint", "dataset"], object_id: str, status: UploadStatus
) -> None:
    """Write the deliveries that tell of an upload's last status. table: `checkpoints` or `datasets`."""
    of_upload = table.c.id == object_id
    event = f"{kind}.{status}"
    subscribed, at = _subscribed(connection, select(table.c.tenant).where(of_upload).scalar_subquery(), event)
    if not subscribed:
        return
    row = connection.execute(select(table.c.name, table.c.error, table.c.created_at).where(of_upload)).one()
    summary = UploadSummary(
        id=object_id, object=kind, name=row.name, status=status, error=row.error, created_at=rfc3339(row.created_at)
    )
    _write(connection, subscribed, WebhookEvent(type=event, timestamp=rfc3339(at), data=summary), at)


def merge_ended(connection: Connection, merge_id: str, status: MergeStatus) -> None:
    """Write the deliveries that tell of a merge's last status."""
    of_merge = merges.c.id == merge_id
    event = f"merge.{status}"
    subscribed, at = _subscribed(connection, select(merges.c.tenant).where(of_merge).scalar_subquery(), event)
    if not subscribed:
        return
    columns = merges.c.name, merges.c.error, merges.c.created_at, merges.c.started_at, merges.c.finished_at
    row = connection.execute(select(*columns).where(of_merge)).one()
    summary = MergeSummary(
        id=merge_id,
        name=row.name,
        status=status,
        error=row.error,
        created_at=rfc3339(row.created_at),
        started_at=rfc3339(row.started_at),
        finished_at=rfc3339(row.finished_at),
    )
    _write(connection, subscribed, WebhookEvent(type=event, timestamp=rfc3339(at), data=summary), at)


def study_ended(connection: Connection, tenant: str, summary: StudySummary) -> None:
    """Write the deliveries that tell of a study's end."""
    event = f"study.{summary.status}"
    subscribed, at = _subscribed(connection, select(literal(tenant)).scalar_subquery(), event)
    if subscribed:
        _write(connection, subscribed, WebhookEvent(type=event, timestamp=rfc3339(at), data=summary), at)


def ping(connection: Connection, tenant: str, webhook: str, name: str | None) -> str:
    """Write the delivery of a ping to one webhook; returns its id."""
    at = float(connection.execute(select(now())).scalar_one())
    event = WebhookEvent(type=PING, timestamp=rfc3339(at), data=WebhookSummary(id=webhook, name=name))
    return _write(connection, [(tenant, webhook)], event, at)[0]


def _subscribed(connection: Connection, tenant: ScalarSelect[str], event: str) -> tuple[list[tuple[str, str]], float]:
    """Return tenant and id of the webhooks that want the event, and the database's time."""
    query = select(webhooks.c.tenant, webhooks.c.id, webhooks.c.events, now().label("at")).where(
        webhooks.c.tenant == tenant, webhooks.c.status == "enabled"
    )
    # A webhook that is being deleted is waited for, and then not there: or its delivery would refer to nothing, and the
    # change that is told of would fail with it.
    rows = connection.execute(query.with_for_update(read=True, key_share=True)).all()
    wanted = [
        row for row in rows if isinstance(row.events, list) and any(matches(str(one), event) for one in row.events)
    ]
    return [(row.tenant, row.id) for row in wanted], wanted[0].at if wanted else 0.0


def _write(connection: Connection, to: list[tuple[str, str]], event: WebhookEvent, at: float) -> list[str]:
    payload = event.model_dump_json()
    rows = [
        {
            "id": new_id("msg"),
            "tenant": tenant,
            "webhook": webhook,
            "type": event.type,
            "payload": payload,
            "status": "pending",
            "attempts": 0,
            "next_attempt_at": at,
            "retry_until": at + RETRY_SECONDS,
            "created_at": at,
        }
        for tenant, webhook in to
    ]
    connection.execute(insert(webhook_deliveries), rows)
    return [str(row["id"]) for row in rows]
