"""Webhooks through the API: created, listed, rotated, refused; and one whole way from a job to its receiver."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from standardwebhooks.webhooks import Webhook as Standard

from tests.conftest import DATABASES, Broker, Service, fresh_database, wait_until
from tests.material import write_archive, write_start
from tests.receivers import Answering, receiver
from tests.service.app import App, app_in
from wbar.webhooks import Delivery, Webhook
from wbar_store.database import Tenant
from wbar_store.keys import Keys

URL = "https://hooks.example/wbar"


@pytest.fixture
def app(tmp_path: Path) -> Iterator[App]:
    with app_in(tmp_path) as made:
        yield made


def test_a_secret_is_shown_by_the_answers_that_made_it_and_by_no_other(app: App) -> None:
    body, key = {"url": URL, "events": ["job.*"], "name": "my chat"}, {"Idempotency-Key": "once"}
    made = app.request("POST", "/v1/webhooks", json=body, headers=key)
    assert made.status_code == 201
    webhook = Webhook.model_validate(made.json())
    assert webhook.id.startswith("hook_")
    assert str(webhook.secret).startswith("whsec_")
    assert (webhook.url, webhook.events, webhook.status, webhook.name) == (URL, ["job.*"], "enabled", "my chat")
    again = app.request("POST", "/v1/webhooks", json=body, headers=key)
    assert (again.json(), again.headers["idempotent-replayed"]) == (made.json() | {"secret": None}, "true")
    secrets = [webhook.secret]
    for options in ({}, {"json": {}}, {"json": {"overlap_seconds": 60}}, {"json": {"overlap_seconds": None}}):
        rotated = app.request("POST", f"/v1/webhooks/{webhook.id}/rotate", **options)
        assert (rotated.status_code, rotated.json() | {"secret": None}) == (200, again.json())
        secrets.append(rotated.json()["secret"])
    assert len(set(secrets)) == 5
    ping = app.request("POST", f"/v1/webhooks/{webhook.id}/ping").json()
    for path in ("", f"/{webhook.id}", f"/{webhook.id}/deliveries", f"/{webhook.id}/deliveries/{ping['id']}"):
        answer = app.request("GET", f"/v1/webhooks{path}")
        assert answer.status_code == 200
        assert "whsec_" not in answer.text
    assert app.request("DELETE", f"/v1/webhooks/{webhook.id}").json() == {
        "id": webhook.id, "object": "webhook", "deleted": True,
    }  # fmt: skip
    assert app.request("GET", f"/v1/webhooks/{webhook.id}").status_code == 404
    gone = app.request("POST", "/v1/webhooks", json=body, headers=key)
    assert gone.json()["code"] == "idempotent_object_deleted"


def test_lists_go_on_where_they_ended(app: App) -> None:
    made = [app.request("POST", "/v1/webhooks", json={"url": URL}).json()["id"] for _ in range(3)]
    first = app.request("GET", "/v1/webhooks?limit=2&order=asc").json()
    assert ([one["id"] for one in first["data"]], first["has_more"]) == (made[:2], True)
    rest = app.request("GET", f"/v1/webhooks?order=asc&after={first['last_id']}").json()
    assert ([one["id"] for one in rest["data"]], rest["has_more"]) == (made[2:], False)
    deliveries = f"/v1/webhooks/{made[0]}/deliveries"
    pings = [app.request("POST", f"/v1/webhooks/{made[0]}/ping").json() for _ in range(3)]
    shown = app.request("GET", f"{deliveries}?limit=2").json()
    assert [one["id"] for one in shown["data"]] == [pings[2]["id"], pings[1]["id"]]
    assert [one["status"] for one in shown["data"]] == ["pending", "pending"]
    rest = app.request("GET", f"{deliveries}?after={shown['last_id']}&status=pending").json()
    assert [Delivery.model_validate(one).payload.type for one in rest["data"]] == ["webhook.ping"]
    assert app.request("GET", f"{deliveries}?status=failed").json()["data"] == []
    assert app.request("GET", f"/v1/webhooks/{made[1]}/deliveries").json()["data"] == []
    assert app.request("GET", f"/v1/webhooks/{made[1]}/deliveries/{pings[0]['id']}").status_code == 404
    assert app.request("GET", f"{deliveries}?after=hook_1").status_code == 422
    replayed = app.request("POST", f"{deliveries}/{pings[0]['id']}/replay")
    assert (replayed.status_code, replayed.json()["status"]) == (200, "pending")


@pytest.mark.parametrize(
    ("body", "pointer", "words"),
    [
        ({}, "/url", "required"),
        ({"url": "no url"}, "/url", "URL"),
        ({"url": "ftp://hooks.example/"}, "/url", "scheme"),
        ({"url": "https://me:secret@hooks.example/"}, "/url", "password"),
        ({"url": "http://hooks.example/"}, "/url", "https"),
        ({"url": "https://127.0.0.1/"}, "/url", "public network"),
        ({"url": "https://2130706433/"}, "/url", "public network"),
        ({"url": "https://169.254.169.254/latest/meta-data"}, "/url", "public network"),
        ({"url": "https://[::ffff:10.0.0.1]/"}, "/url", "public network"),
        ({"url": "https://localhost:8000/"}, "/url", "public network"),
        ({"url": URL, "events": []}, "/events", "at least 1"),
        ({"url": URL, "events": ["job.finished"]}, "/events/0", "job.succeeded"),
        ({"url": URL, "secret": "mine"}, "/secret", "not known"),
        ({"url": URL, "name": "=1+1"}, "/name", "spreadsheet"),
    ],
)
def test_a_webhook_that_makes_no_sense_is_refused(app: App, body: dict[str, Any], pointer: str, words: str) -> None:
    answer = app.request("POST", "/v1/webhooks", json=body)
    assert (answer.status_code, answer.json()["code"]) == (422, "validation_failed")
    (error,) = answer.json()["errors"]
    assert error["pointer"] == pointer
    assert words in error["detail"]
    assert "secret@" not in answer.text


def test_what_the_operator_allows_may_be_named(tmp_path: Path) -> None:
    with app_in(tmp_path, webhooks_allow=["10.0.0.0/8", "127.0.0.1/32"]) as app:
        for url in ("http://10.1.2.3/", "http://127.0.0.1:9000/", "http://localhost:9000/", "http://chat.internal/"):
            assert app.request("POST", "/v1/webhooks", json={"url": url}).status_code == 201
        assert app.request("POST", "/v1/webhooks", json={"url": "http://192.168.0.1/"}).status_code == 422


def test_a_tenant_has_a_number_of_webhooks_at_most(tmp_path: Path) -> None:
    with app_in(tmp_path, max_tenant_webhooks=2) as app:
        made = [app.request("POST", "/v1/webhooks", json={"url": URL}) for _ in range(3)]
        assert [one.status_code for one in made] == [201, 201, 429]
        assert made[2].json()["code"] == "quota_exceeded"
        assert made[2].headers["retry-after"]
        app.request("DELETE", f"/v1/webhooks/{made[0].json()['id']}")
        assert app.request("POST", "/v1/webhooks", json={"url": URL}).status_code == 201


def test_a_disabled_webhook_is_enabled_again(app: App) -> None:
    webhook = app.request("POST", "/v1/webhooks", json={"url": URL}).json()["id"]
    app.asgi.state.store.webhooks.disable(webhook, "its receiver answered 410 (gone)")
    assert app.request("GET", f"/v1/webhooks/{webhook}").json()["status"] == "disabled"
    assert app.request("POST", f"/v1/webhooks/{webhook}/ping").json()["code"] == "invalid_transition"
    assert app.request("POST", f"/v1/webhooks/{webhook}/enable").json()["status"] == "enabled"
    assert app.request("POST", f"/v1/webhooks/{webhook}/ping").status_code == 201


def test_another_tenant_finds_no_webhook(app: App) -> None:
    webhook = app.request("POST", "/v1/webhooks", json={"url": URL}).json()["id"]
    ping = app.request("POST", f"/v1/webhooks/{webhook}/ping").json()["id"]
    other = Keys(app.asgi.state.store.database).create("other", Tenant("other")).key
    theirs = app.request("POST", "/v1/webhooks", json={"url": URL}, key=other).json()["id"]
    for method, path in [
        ("GET", webhook), ("DELETE", webhook), ("POST", f"{webhook}/rotate"), ("POST", f"{webhook}/enable"),
        ("POST", f"{webhook}/ping"), ("GET", f"{webhook}/deliveries"), ("GET", f"{webhook}/deliveries/{ping}"),
        ("POST", f"{webhook}/deliveries/{ping}/replay"), ("GET", f"{theirs}/deliveries/{ping}"),
        ("POST", f"{theirs}/deliveries/{ping}/replay"),
    ]:  # fmt: skip
        answer = app.request(method, f"/v1/webhooks/{path}", key=other)
        assert (answer.status_code, answer.json()["code"]) == (404, "not_found"), (method, path)
    assert [one["id"] for one in app.request("GET", "/v1/webhooks", key=other).json()["data"]] == [theirs]


@pytest.fixture
def allowing(tmp_path: Path) -> Iterator[Service]:
    """A service whose webhooks may be sent to this machine."""
    with fresh_database(DATABASES[-1], tmp_path) as url:
        broker = Broker()
        broker.start()
        made = Service(
            tmp_path, url, broker, WBAR_WEBHOOKS_ALLOW='["127.0.0.0/8"]', WBAR_WEBHOOK_BACKOFF_SECONDS="0.05"
        )
        yield made
        made.stop()
        broker.kill()


@pytest.mark.long
def test_from_an_upload_to_a_verdict_each_step_arrives(allowing: Service, tmp_path: Path) -> None:
    allowing.start()
    with (
        allowing.client() as client,
        allowing.http() as http,
        allowing.http(allowing.other_key) as other,
        receiver(lambda n: Answering(500 if n == 0 else 200)) as there,
        receiver() as theirs,
    ):
        made = http.post("/v1/webhooks", json={"url": there.url}).json()
        other.post("/v1/webhooks", json={"url": theirs.url})
        checkpoint = client.checkpoints.create(write_start(tmp_path)).id
        dataset = client.datasets.create(write_archive(tmp_path)).id
        broken = tmp_path / "broken.pt"
        broken.write_bytes(b"no checkpoint")
        rejected = client.checkpoints.create(broken, wait=False).id
        job = client.jobs.create(checkpoint=checkpoint, dataset=dataset, method={"cycles": 1}, name="digits")
        client.jobs.wait(str(job.id), timeout=120)
        path = f"/v1/webhooks/{made['id']}/deliveries"

        def delivered() -> list[dict[str, Any]]:
            return list(http.get(f"{path}?status=delivered&limit=100&order=asc").json()["data"])

        wait_until(lambda: len(delivered()) == 6, 60, "six deliveries")
        told = {(one["payload"]["type"], one["payload"]["data"]["id"]) for one in delivered()}
        assert told == {
            ("checkpoint.ready", checkpoint), ("dataset.ready", dataset), ("checkpoint.rejected", rejected),
            ("job.queued", job.id), ("job.running", job.id), ("job.succeeded", job.id),
        }  # fmt: skip
        for one in there.received:
            assert Standard(made["secret"]).verify(one.body, one.headers)
        ended = next(one for one in delivered() if one["type"] == "job.succeeded")
        assert ended["payload"]["data"]["verdict"] in ("better", "same", "worse")
        assert ended["payload"]["data"]["finished_at"] == client.jobs.get(str(job.id)).finished_at
        before = len(there.received)
        assert http.post(f"{path}/{ended['id']}/replay").json()["status"] == "pending"
        again = there.wait_for(before + 1)[-1]
        assert again.id == ended["id"]
        assert theirs.received == []
