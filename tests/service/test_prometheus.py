"""`GET /metrics`: what Prometheus' own parser reads of it."""

from pathlib import Path

import httpx
import pytest
from prometheus_client.parser import text_string_to_metric_families

from tests.conftest import Service
from tests.service.app import app_in
from tests.store.rows import insert_inputs, spec
from wbar_store.counts import count
from wbar_store.database import Database, Tenant
from wbar_store.store import Store


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
