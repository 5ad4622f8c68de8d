"""Who may do what: every operation of the OpenAPI document, asked with every kind of key."""

import socket
import time
from collections.abc import Iterator
from typing import Any

import httpx
import pytest
from sqlalchemy import update

from tests.conftest import Service, wait_until
from tests.material import write_archive, write_start
from wbar_service.auth import REMEMBERED_SECONDS
from wbar_store.database import Tenant, now
from wbar_store.keys import Keys
from wbar_store.tables import api_keys

TUS = {"Tus-Resumable": "1.0.0"}  # which requests about uploads must have
OPEN = {"/healthz", "/readyz", "/metrics"}
BODIES: dict[str, dict[str, Any]] = {
    "/v1/jobs": {"checkpoint": "ckpt_1", "dataset": "ds_1"},
    "/v1/keys": {"name": "x"},
    "/v1/merges": {"checkpoints": ["ckpt_1"]},
    "/v1/studies": {"job": {"checkpoint": "ckpt_1", "dataset": "ds_1"}, "seeds": [0]},
    "/v1/webhooks": {"url": "https://hooks.example/"},
}


@pytest.fixture(scope="module")
def owned(service: Service, tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """Objects of the default tenant, by the name of the path parameter."""
    folder = tmp_path_factory.mktemp("owned")
    with service.client() as client:
        checkpoint = client.checkpoints.create(write_start(folder))
        dataset = client.datasets.create(write_archive(folder))
        job = client.jobs.create(checkpoint=checkpoint.id, dataset=dataset.id, method={"cycles": 1})
        merge = client.merges.wait(client.merges.create([checkpoint.id]).id, timeout=60)
        study = client.studies.create(
            {"checkpoint": checkpoint.id, "dataset": dataset.id, "method": {"cycles": 1}}, seeds=[0]
        )
        client.studies.wait(study.id, timeout=120)
        ended = client.jobs.wait(job.id, timeout=120)
        key = client.keys.create("kept", scopes=["read"])
    with service.http() as http:
        hook = http.post("/v1/webhooks", json=BODIES["/v1/webhooks"]).json()["id"]
        delivery = http.post(f"/v1/webhooks/{hook}/ping").json()["id"]
        upload = http.post("/v1/uploads", headers=TUS | {"Upload-Length": "5"}).json()["id"]
    assert ended.status == "succeeded"
    assert job.id is not None
    return {
        "checkpoint_id": checkpoint.id,
        "dataset_id": dataset.id,
        "job_id": job.id,
        "key_id": key.id,
        "n": "1",
        "webhook_id": hook,
        "delivery_id": delivery,
        "upload_id": upload,
        "merge_id": merge.id,
        "study_id": study.id,
    }


@pytest.fixture(scope="module")
def operations(service: Service) -> list[tuple[str, str]]:
    with service.http(None) as http:
        paths = http.get("/openapi.json").json()["paths"]
    return [(method.upper(), path) for path, methods in paths.items() if path not in OPEN for method in methods]


def ask(http: httpx.Client, method: str, path: str, owned: dict[str, str]) -> httpx.Response:
    for name, value in owned.items():
        path = path.replace(f"{{{name}}}", value)
    return http.request(method, path, json=BODIES.get(path) if method == "POST" else None, headers=TUS)


def needed(method: str, path: str) -> str:
    if path.startswith("/v1/keys"):
        return "admin"
    if method in ("GET", "HEAD") or path == "/v1/sign-in-links" or path.endswith("/predict"):
        return "read"
    return "admin" if path.startswith("/v1/webhooks") else "write"


def wrong_keys(service: Service) -> Iterator[tuple[str, str | None]]:
    keys = Keys(service.database)
    good = keys.create("to be mistyped").key
    yield "none", None
    yield "malformed", "x" * 5000
    yield "mistyped", good[:-1] + ("0" if good[-1] != "0" else "1")
    revoked = keys.create("to be revoked")
    keys.revoke(Tenant("default"), revoked.record.id)
    yield "revoked", revoked.key
    expired = keys.create("to expire", lifetime=60.0)
    with service.database.write() as connection:
        connection.execute(update(api_keys).where(api_keys.c.id == expired.record.id).values(expires_at=now() - 1))
    yield "expired", expired.key


def test_no_operation_answers_a_wrong_key(
    service: Service, owned: dict[str, str], operations: list[tuple[str, str]]
) -> None:
    for kind, key in wrong_keys(service):
        with service.http(key) as http:
            for method, path in operations:
                answer = ask(http, method, path, owned)
                assert (answer.status_code, answer.json()["code"]) == (401, "unauthorized"), (kind, method, path)
                assert answer.headers["www-authenticate"] == "Bearer"
                assert not any(value in answer.text for name, value in owned.items() if name != "n")


def test_no_operation_answers_a_key_without_its_scope(
    service: Service, owned: dict[str, str], operations: list[tuple[str, str]]
) -> None:
    every = ("read", "write", "admin")
    for scope in every:
        others = tuple(one for one in every if one != scope)
        with service.http(Keys(service.database).create(f"all but {scope}", scopes=others).key) as http:
            for method, path in operations:
                if needed(method, path) != scope:
                    continue
                answer = ask(http, method, path, owned)
                assert (answer.status_code, answer.json()["code"]) == (403, "insufficient_scope"), (method, path)
                assert scope in answer.headers["www-authenticate"]
                assert not any(value in answer.text for name, value in owned.items() if name != "n")


def test_another_tenant_finds_nothing(
    service: Service, owned: dict[str, str], operations: list[tuple[str, str]]
) -> None:
    """Objects that are not one's own answer as those that do not exist: in status, in words and in length."""
    nothing = {name: value[:-4] + "zzzz" if name != "n" else value for name, value in owned.items()}
    with service.http(Keys(service.database).create("a stranger", Tenant("stranger")).key) as http:
        for method, path in operations:
            if "{" not in path:
                continue
            answer, absent = ask(http, method, path, owned), ask(http, method, path, nothing)
            assert (answer.status_code, answer.json()["code"]) == (404, "not_found"), (method, path)
            hidden = {name: owned[name] for name in owned if name != "n"}
            text = answer.text
            for name, value in hidden.items():
                text = text.replace(value, nothing[name])
            assert text == absent.text
        for path in (
            "/v1/checkpoints",
            "/v1/datasets",
            "/v1/jobs",
            "/v1/merges",
            "/v1/studies",
            "/v1/webhooks",
            "/v1/uploads",
        ):
            assert http.get(path).json() == {
                "object": "list", "data": [], "has_more": False, "first_id": None, "last_id": None,
            }  # fmt: skip
        stream = http.get(f"/v1/jobs/{owned['job_id']}/events", headers={"Accept": "text/event-stream"})
        assert stream.status_code == 404
    with service.client() as client:  # and nothing was changed
        assert client.jobs.get(owned["job_id"]).status == "succeeded"
        assert client.checkpoints.get(owned["checkpoint_id"]).status == "ready"


def test_a_key_is_shown_once(service: Service) -> None:
    with service.http() as http:
        body, headers = {"name": "my laptop", "expires_in_days": 1}, {"Idempotency-Key": "a key's key"}
        made = http.post("/v1/keys", json=body, headers=headers).json()
        again = http.post("/v1/keys", json=body, headers=headers)
        assert made["key"].startswith(made["hint"].rstrip("…"))
        assert made["scopes"] == ["read", "write"]
        assert (again.json()["id"], again.json()["key"]) == (made["id"], None)
        assert again.headers["idempotent-replayed"] == "true"
        for path in ("/v1/keys", f"/v1/keys/{made['id']}"):
            assert made["key"] not in http.get(path).text
    with service.http(made["key"]) as http:
        assert http.get("/v1/jobs").status_code == 200
        assert http.get("/v1/keys").status_code == 403
    with service.http() as http:
        wait_until(lambda: http.get(f"/v1/keys/{made['id']}").json()["last_used_at"], 10, "the last use")
        assert http.delete(f"/v1/keys/{made['id']}").json() == {"id": made["id"], "object": "key", "deleted": True}
        assert http.delete(f"/v1/keys/{made['id']}").status_code == 404
    with service.http(made["key"]) as http:
        wait_until(lambda: http.get("/v1/jobs").status_code == 401, 3, "the refusal")


@pytest.mark.parametrize(
    "body",
    [{}, {"name": "x", "scopes": []}, {"name": "x", "scopes": ["root"]}, {"name": "x", "expires_in_days": 0},
     {"name": "x", "expires_in_days": 1e9}, {"name": "x" * 257}],
)  # fmt: skip
def test_a_key_that_makes_no_sense_is_refused(service: Service, body: dict[str, Any]) -> None:
    with service.http() as http:
        assert http.post("/v1/keys", json=body).status_code == 422


def test_requests_of_two_tenants_on_one_connection(service: Service, owned: dict[str, str]) -> None:
    """A proxy may send both, one behind the other: neither is served as the other's."""

    def asking(key: str, path: str) -> bytes:
        return f"GET {path} HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {key}\r\n\r\n".encode()

    job = f"/v1/jobs/{owned['job_id']}"
    for keys in ((service.key, service.other_key), (service.other_key, service.key)):
        time.sleep(REMEMBERED_SECONDS)  # or neither key would be looked up
        with socket.create_connection(("127.0.0.1", service.port), timeout=20) as connection:
            connection.sendall(b"".join(asking(key, job) for key in keys) + asking(keys[0], "/readyz"))
            received, expected = b"", [200 if key == service.key else 404 for key in keys]
            while received.count(b"HTTP/1.1 ") < 3 or not received.rstrip().endswith(b"}"):
                part = connection.recv(65536)
                assert part, received
                received += part
        statuses = [int(one[:3]) for one in received.split(b"HTTP/1.1 ")[1:]]
        assert statuses == [*expected, 200]
