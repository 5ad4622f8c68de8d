"""`GET /metrics`: what Prometheus' own parser reads of it."""

import threading
from pathlib import Path

import httpx
import pytest
from prometheus_client.parser import text_string_to_metric_families
from sqlalchemy import update

from tests.conftest import Service
from tests.service.app import app_in
from tests.store.rows import insert_inputs, spec
from wbar.states import TERMINAL
from wbar_store.counters import Counters
from wbar_store.counts import count
from wbar_store.database import Database, Tenant
from wbar_store.store import Store
from wbar_store.tables import webhook_deliveries
from wbar_store.workers import GpuMemory, WorkerRecord

MINE = Tenant("default")


def scraped(answer: httpx.Response) -> dict[tuple[str, ...], float]:
    """Samples by name and label values."""
    assert answer.status_code == 200
    assert answer.headers["content-type"].startswith("text/plain; version=")
    return {
        (sample.name, *sample.labels.values()): sample.value
        for family in text_string_to_metric_families(answer.text)
        for sample in family.samples
    }


def test_a_whole_service_is_counted(service: Service) -> None:
    with service.http() as http:
        for _ in range(3):
            http.get("/v1/jobs/job_that_is_not_there")
        http.get("/nowhere")
        found = scraped(http.get("/metrics"))
    with service.http(None) as http:
        assert http.get("/metrics").status_code == 200  # it names no tenant
    assert found["wbar_http_requests_total", "GET", "/v1/jobs/{job_id}", "404"] >= 3
    assert found["wbar_http_requests_total", "any", "none", "404"] >= 1
    assert found["wbar_http_request_seconds_count", "/v1/jobs/{job_id}"] >= 3
    assert found["wbar_database_up",] == found["wbar_broker_up",] == 1
    assert found["wbar_workers", "train"] == found["wbar_workers", "ingest"] == 1
    assert found["wbar_worker_slots", "train"] >= 1
    assert {status for name, *labels in found if name == "wbar_jobs" for status in labels} == {
        "queued", "running", "paused", "succeeded", "failed", "cancelled",
    }  # fmt: skip
    assert found["wbar_http_bytes_total", "sent", "/v1/jobs/{job_id}"] > 0
    assert found["wbar_sweeps_total", "done"] >= 1
    assert found["wbar_sweep_age_seconds",] < 30
    assert {status for name, *labels in found if name == "wbar_jobs_ended_total" for status in labels} == TERMINAL
    assert not any("job_that_is_not_there" in part for sample in found for part in sample)


def test_what_waits_and_what_runs_is_counted(database: Database) -> None:
    insert_inputs(database)
    store = Store(database, None, None)  # type: ignore[arg-type]  # nothing is uploaded or notified here
    empty = count(database)
    assert (empty.jobs["queued"], empty.oldest_job, empty.images_per_second, empty.stored_bytes) == (0, 0.0, 0.0, 0)
    assert empty.uploads["ready"] == 2
    waiting, running, silent = (store.jobs.create(Tenant("default"), spec(), None, {}).id for _ in range(3))
    store.attempts.claim(running, 60)
    store.attempts.claim(silent, -1)
    found = count(database)
    assert waiting
    assert (found.jobs["queued"], found.jobs["running"], found.expired_leases, found.attempts) == (1, 2, 1, 2)
    assert found.oldest_job > 0


def test_messages_to_webhooks_are_counted_until_they_have_ended(database: Database) -> None:
    insert_inputs(database)
    store = Store(database, None, None)  # type: ignore[arg-type]  # nothing is uploaded or notified here
    hook = store.webhooks.create(MINE, "https://example.com/hook", ("*",)).id
    assert (count(database).pending_deliveries, count(database).oldest_delivery) == (0, 0.0)
    ids = [store.deliveries.ping(MINE, hook).id for _ in range(3)]
    with database.write() as connection:
        times = ("created_at", "retry_until", "next_attempt_at")
        earlier = {name: webhook_deliveries.c[name] - 600 for name in times}
        connection.execute(update(webhook_deliveries).where(webhook_deliveries.c.id == ids[0]).values(**earlier))
    sent, missed, _ = (store.deliveries.claim(due, 10) for due in store.deliveries.due(3))  # the longest waiting first
    assert sent
    assert missed
    found = count(database)
    assert found.pending_deliveries == 3, "what is on its way has not arrived"
    assert 600 <= found.oldest_delivery < 660
    store.deliveries.delivered(sent, 204)
    store.deliveries.missed(missed, 500, "answered with 500", 60.0)
    found = count(database)
    assert found.pending_deliveries == 2
    assert found.oldest_delivery < 60
    store.deliveries.replay(MINE, hook, ids[0])
    assert count(database).oldest_delivery < 60, "since it was asked for again"


def test_what_happened_is_counted_whatever_is_deleted_since(database: Database) -> None:
    insert_inputs(database)
    store = Store(database, None, None)  # type: ignore[arg-type]  # nothing is uploaded or notified here
    assert store.counters.all() == []
    cancelled, silent = (store.jobs.create(MINE, spec(), None, {}).id for _ in range(2))
    for _ in range(2):
        store.jobs.cancel(MINE, cancelled)  # the second time nothing happens
    store.jobs.remove(MINE, cancelled)
    store.attempts.claim(silent, -1)
    ((owner, claim),) = store.attempts.expired()
    assert (owner, claim.id) == (MINE, silent)
    assert [store.attempts.expire(claim, "gone") for _ in range(2)] == ["queued", None]
    store.counters.add("sweeps", "done", 3)
    found = {(one.name, one.label): one.value for one in store.counters.all()}
    assert found == {("jobs_ended", "cancelled"): 1, ("lease_expiries", "queued"): 1, ("sweeps", "done"): 3}
    assert all(0 <= one.raised_seconds < 60 for one in store.counters.all())


def test_counters_that_are_raised_at_once_lose_nothing(database: Database) -> None:
    counters = Counters(database)
    threads = [threading.Thread(target=lambda: [counters.add("sweeps", "done") for _ in range(20)]) for _ in range(5)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert [one.value for one in counters.all()] == [100]


def test_the_memory_of_gpus_is_shown_once_for_each(tmp_path: Path) -> None:
    gpus = (GpuMemory("GPU-1", 3 * 2**30, 80 * 2**30), GpuMemory("GPU-2", 0, 80 * 2**30))
    with app_in(tmp_path) as app:
        for name in ("train-1@here", "train-2@here"):
            app.asgi.state.store.workers.seen(WorkerRecord(name, "train", "cuda", 2, gpus))
        found = scraped(app.request("GET", "/metrics", key=None))
    assert (found["wbar_gpu_memory_used_bytes", "GPU-1"], found["wbar_gpu_memory_total_bytes", "GPU-2"]) == (
        3 * 2**30,
        80 * 2**30,
    )


def test_without_its_database_and_broker_it_says_so(tmp_path: Path) -> None:
    with app_in(tmp_path, broker_url="redis://127.0.0.1:1/0") as app:
        found = scraped(app.request("GET", "/metrics", key=None))
        assert found["wbar_database_up",] == 1
        assert found["wbar_broker_up",] == 0
        app.asgi.state.store.database.dispose()
        for name in ("wbar.db", "wbar.db-wal", "wbar.db-shm"):
            (tmp_path / name).unlink(missing_ok=True)
        (tmp_path / "wbar.db").mkdir()
        assert scraped(app.request("GET", "/metrics", key=None))["wbar_database_up",] == 0


@pytest.mark.parametrize(("sent", "status"), [(None, 401), ("wrong", 401), ("the operator's", 200)])
def test_a_token_that_the_operator_set_is_asked_for(tmp_path: Path, sent: str | None, status: int) -> None:
    with app_in(tmp_path, metrics_token="the operator's") as app:
        assert app.request("GET", "/metrics", key=sent).status_code == status
