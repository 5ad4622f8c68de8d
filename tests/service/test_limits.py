"""Limits per key and per tenant: told in the answers, kept by all processes together, and never over another's."""

import threading
from pathlib import Path

import pytest

from tests.conftest import Broker, Service
from tests.service.app import App, app_in
from tests.store.rows import insert_inputs, spec
from wbar.errors import QuotaExceeded
from wbar_store.database import Database, Tenant
from wbar_store.keys import Keys
from wbar_store.quotas import Quota
from wbar_store.store import Store

MINE = Tenant("default")


def another_key(app: App, tenant: str = "default") -> str:
    store: Store = app.asgi.state.store
    return store.keys.create("another", Tenant(tenant)).key


@pytest.mark.parametrize(("setting", "method", "path"), [
    ("reads_per_minute", "GET", "/v1/jobs"), ("writes_per_minute", "POST", "/v1/jobs"),
])  # fmt: skip
def test_a_key_that_asks_too_often_is_told_when_to_come_back(
    tmp_path: Path, setting: str, method: str, path: str
) -> None:
    with app_in(tmp_path, **{setting: 3}) as app:
        left = []
        for _ in range(3):
            answer = app.request(method, path, json={})
            assert answer.status_code in (200, 422)
            left.append(answer.headers["ratelimit"].partition(";r=")[2].partition(";")[0])
        refused = app.request(method, path, json={})
        assert (refused.status_code, refused.json()["code"]) == (429, "rate_limited")
        assert 1 <= int(refused.headers["retry-after"]) <= 60
        assert refused.headers["ratelimit"].endswith(f"r=0;t={refused.headers['retry-after']}")
        assert "q=3;w=60" in refused.headers["ratelimit-policy"]
        assert left == ["2", "1", "0"]  # refusals for other reasons, 422 here, say it too
        assert app.request(method, path, json={}, key=another_key(app)).status_code in (200, 422)
        assert app.request("GET" if method == "POST" else "POST", path, json={}).status_code in (200, 422)
        assert app.request("GET", "/healthz").status_code == 200


def test_changes_are_counted_for_all_processes_together(tmp_path: Path) -> None:
    broker = Broker()
    broker.start()
    services = []
    try:
        for name in ("one", "two"):
            (tmp_path / name).mkdir()
            url = f"sqlite:///{tmp_path / 'wbar.db'}"
            services.append(Service(tmp_path / name, url, broker, WBAR_WRITES_PER_MINUTE="6"))
            services[-1].start("api")
        key = Keys(services[0].database).create("shared").key
        statuses = []
        for turn in range(8):
            with services[turn % 2].http(key) as http:
                statuses.append(http.post("/v1/jobs/job_none/cancel").status_code)
        assert statuses == [404] * 6 + [429] * 2
        broker.kill()
        with services[0].http(key) as http:  # a broker that is away takes nothing down
            assert http.post("/v1/jobs/job_none/cancel").status_code == 404
    finally:
        for service in services:
            service.stop()
        broker.kill()


def test_a_tenant_keeps_no_more_than_it_may(tmp_path: Path) -> None:
    with app_in(tmp_path, max_tenant_bytes=2000) as app:
        assert app.request("POST", "/v1/checkpoints", content=b"a" * 1500).status_code == 201
        for path in ("/v1/checkpoints", "/v1/datasets"):
            refused = app.request("POST", path, content=b"b" * 600)
            assert (refused.status_code, refused.json()["code"]) == (429, "quota_exceeded")
            assert refused.headers["retry-after"]
        assert [one.name for one in (tmp_path / "blobs" / "tmp").iterdir()] == []
        assert app.request("POST", "/v1/datasets", content=b"b" * 400).status_code == 201
        assert app.request("POST", "/v1/datasets", json={"source": "builtin:digits"}).status_code == 201
        assert app.request("POST", "/v1/datasets", content=b"b" * 100).status_code == 201
        assert app.request("POST", "/v1/datasets", json={"source": "builtin:digits"}).status_code == 429, "it is full"
        assert app.request("POST", "/v1/datasets", content=b"b" * 600, key=another_key(app, "b")).status_code == 201
        kept = app.request("GET", "/v1/checkpoints").json()["first_id"]
        assert app.request("DELETE", f"/v1/checkpoints/{kept}").status_code == 200
        assert app.request("POST", "/v1/checkpoints", content=b"c" * 1500).status_code == 201


def test_an_upload_that_comes_again_is_answered_whatever_the_quota_says(tmp_path: Path) -> None:
    with app_in(tmp_path, max_tenant_bytes=2000) as app:
        for path in ("/v1/checkpoints", "/v1/datasets"):
            answers = [
                app.request("POST", path, content=path.encode() * 60, headers={"Idempotency-Key": path})
                for _ in range(2)
            ]
            assert [answer.status_code for answer in answers] == [201, 201]
            assert answers[0].json() == answers[1].json()
        refused = app.request("POST", "/v1/datasets", content=b"x" * 900, headers={"Idempotency-Key": "new"})
        assert refused.status_code == 429


def test_a_tenant_has_no_more_jobs_at_work_than_it_may(database: Database) -> None:
    store, limits = Store(database, None, None), Quota(bytes=None, jobs=3)  # type: ignore[arg-type]  # not used here
    insert_inputs(database)
    refused: list[QuotaExceeded] = []

    def submit() -> None:
        try:
            with database.write():
                store.quotas.check_jobs(MINE, limits)
                store.jobs.create(MINE, spec(), None, {})
        except QuotaExceeded as error:
            refused.append(error)

    threads = [threading.Thread(target=submit) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(refused) == 5
    waiting = store.jobs.overdue(True)
    assert len(waiting) == 3
    store.jobs.cancel(MINE, waiting[0])
    submit()
    assert len(refused) == 5, "an ended job makes room"
