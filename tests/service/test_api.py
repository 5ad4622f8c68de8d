"""The contract, asked over real HTTP: headers, lists, problems, tenants, ranges, idempotency."""

import base64
import hashlib
import io
import json
import time
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime, parsedate_to_datetime
from pathlib import Path
from statistics import median

import jsonschema
import pytest
import torch

from tests.conftest import Service, wait_until
from tests.material import archive_bytes, start_state, write_archive, write_part, write_start
from wbar.catalog import ARCHITECTURES
from wbar.client import Client


@pytest.fixture(scope="session")
def ready(service: Service, tmp_path_factory: pytest.TempPathFactory) -> tuple[str, str]:
    """A checkpoint and a dataset that are ready."""
    folder = tmp_path_factory.mktemp("uploads")
    with service.client() as client:
        checkpoint = client.checkpoints.create(write_start(folder))
        dataset = client.datasets.create(write_archive(folder))
    return checkpoint.id, dataset.id


def wait_rejected(client: Client, object_id: str) -> dict:
    kind = client.checkpoints if object_id.startswith("ckpt_") else client.datasets
    wait_until(lambda: kind.get(object_id).status != "processing", 60, "the verdict")
    return kind.get(object_id).model_dump()


def test_a_checkpoint_is_described_as_the_contract_says(service: Service, ready: tuple[str, str]) -> None:
    with service.http() as http:
        found = http.get(f"/v1/checkpoints/{ready[0]}").json()
    assert set(found) == {
        "id", "object", "name", "status", "format", "bytes", "sha256", "parameters", "tensors", "architecture",
        "pretrained", "adapter", "error", "created_at", "expires_at",
    }  # fmt: skip
    assert found["object"] == "checkpoint"
    assert found["status"] == "ready"
    assert found["format"] == "safetensors"
    assert found["parameters"] == 269_722
    assert found["architecture"]["name"] == "resnet20"
    assert found["architecture"]["num_classes"] == 10
    assert found["architecture"]["source"] == "detected"
    assert found["created_at"].endswith("Z")


def test_a_dataset_is_described_as_the_contract_says(service: Service, ready: tuple[str, str]) -> None:
    with service.http() as http:
        found = http.get(f"/v1/datasets/{ready[1]}").json()
    assert found["object"] == "dataset"
    assert found["task"] == "classification"
    assert found["classes"] == list("0123456789")
    assert found["splits"] == {"train": {"images": 120}, "val": {"images": 60}}
    assert found["image"] == {"channels": 1, "height": 8, "width": 8}
    assert found["sha256"] == hashlib.sha256(archive_bytes()).hexdigest()
    assert found["bytes"] == len(archive_bytes())


@pytest.mark.parametrize("path", ["/v1/checkpoints", "/v1/datasets", "/v1/jobs", "/v1/architectures", "/v1/jobs/job_x"])
def test_without_a_key_nothing_is_told(service: Service, path: str) -> None:
    for key in (None, "wbar_wrong"):
        with service.http(key) as http:
            answer = http.get(path)
        assert answer.status_code == 401
        assert answer.headers["content-type"] == "application/problem+json"
        assert answer.headers["www-authenticate"] == "Bearer"
        assert answer.json()["code"] == "unauthorized"


def test_another_tenants_objects_do_not_exist(service: Service, ready: tuple[str, str]) -> None:
    with service.http(service.other_key) as http:
        for path in (f"/v1/checkpoints/{ready[0]}", f"/v1/checkpoints/{ready[0]}/content", f"/v1/datasets/{ready[1]}"):
            assert http.get(path).status_code == 404
        assert http.delete(f"/v1/checkpoints/{ready[0]}").status_code == 404
        assert http.get("/v1/checkpoints").json()["data"] == []
        answer = http.post("/v1/jobs", json={"checkpoint": ready[0], "dataset": ready[1]})
        assert answer.status_code == 404


@pytest.mark.parametrize(
    "path",
    ["/v1/checkpoints/ckpt_none", "/v1/datasets/ds_none", "/v1/jobs/job_none", "/v1/jobs/job_none/events",
     "/v1/jobs/job_none/weights", "/v1/jobs/job_none/snapshots", "/v1/jobs/job_none/metrics", "/v1/nowhere", "/nowhere"],
)  # fmt: skip
def test_unknown_things_are_404_problems(service: Service, path: str) -> None:
    with service.http() as http:
        answer = http.get(path)
    assert answer.status_code == 404
    problem = answer.json()
    assert set(problem) >= {"type", "title", "status", "detail", "code"}
    assert problem["code"] == "not_found"


def test_every_answer_carries_a_request_id_and_keeps_an_incoming_one(service: Service) -> None:
    with service.http() as http:
        assert len(http.get("/healthz").headers["x-request-id"]) >= 16
        assert http.get("/v1/jobs/none", headers={"X-Request-ID": "mine-7"}).headers["x-request-id"] == "mine-7"
        assert http.get("/healthz", headers={"X-Request-ID": "a\tb" * 100}).headers["x-request-id"] != "a\tb" * 100


def test_lists_page_by_key(service: Service, tmp_path: Path) -> None:
    with service.http(service.other_key) as http:
        made = [
            http.post("/v1/checkpoints", params={"name": f"n{n}"}, content=b"%d" % n).json()["id"] for n in range(5)
        ]
        first = http.get("/v1/checkpoints", params={"limit": 2}).json()
        assert first["object"] == "list"
        assert [item["id"] for item in first["data"]] == made[:-3:-1]
        assert (first["first_id"], first["last_id"], first["has_more"]) == (made[4], made[3], True)
        second = http.get("/v1/checkpoints", params={"limit": 100, "after": first["last_id"]}).json()
        assert [item["id"] for item in second["data"]] == made[2::-1]
        assert not second["has_more"]
        upward = http.get("/v1/checkpoints", params={"order": "asc", "limit": 3}).json()
        assert [item["id"] for item in upward["data"]] == made[:3]
        for bad in ({"limit": 0}, {"limit": 101}, {"order": "up"}):
            answer = http.get("/v1/checkpoints", params=bad)
            assert answer.status_code == 422
            assert answer.json()["errors"][0]["parameter"] == next(iter(bad))
        for checkpoint in made:
            wait_until(lambda c=checkpoint: http.get(f"/v1/checkpoints/{c}").json()["status"] == "rejected")
            assert http.delete(f"/v1/checkpoints/{checkpoint}").status_code == 200


def test_content_is_downloaded_in_ranges_with_strong_etags(service: Service, ready: tuple[str, str]) -> None:
    with service.http() as http:
        url = f"/v1/checkpoints/{ready[0]}/content"
        whole = http.get(url)
        data, etag = whole.content, whole.headers["etag"]
        digest = hashlib.sha256(data)
        assert etag == f'"{digest.hexdigest()}"'
        assert whole.headers["repr-digest"] == f"sha-256=:{base64.b64encode(digest.digest()).decode()}:"
        assert whole.headers["accept-ranges"] == "bytes"
        head = http.head(url)
        assert (head.status_code, head.headers["content-length"], head.content) == (200, str(len(data)), b"")
        part = http.get(url, headers={"Range": "bytes=100-299"})
        assert (part.status_code, part.content) == (206, data[100:300])
        assert part.headers["content-range"] == f"bytes 100-299/{len(data)}"
        assert http.get(url, headers={"Range": "bytes=-10"}).content == data[-10:]
        assert http.get(url, headers={"Range": f"bytes={len(data) - 5}-"}).content == data[-5:]
        assert http.get(url, headers={"Range": "bytes=0-9,20-29"}).status_code == 200
        assert http.get(url, headers={"Range": "bytes=0-9", "If-Range": etag}).status_code == 206
        assert http.get(url, headers={"Range": "bytes=0-9", "If-Range": '"other"'}).status_code == 200
        outside = http.get(url, headers={"Range": f"bytes={len(data)}-"})
        assert outside.status_code == 416
        assert outside.headers["content-range"] == f"bytes */{len(data)}"
        assert http.get(url, headers={"If-None-Match": etag}).status_code == 304
        assert http.get(url, headers={"If-None-Match": f'W/{etag}, "x"'}).status_code == 304
        assert http.get(url, headers={"If-None-Match": '"x"'}).status_code == 200


def test_content_says_when_it_was_stored(service: Service, ready: tuple[str, str]) -> None:
    with service.http() as http:
        url = f"/v1/checkpoints/{ready[0]}/content"
        modified = http.head(url).headers["last-modified"]
        stored = parsedate_to_datetime(modified)
        created = datetime.fromisoformat(http.get(f"/v1/checkpoints/{ready[0]}").json()["created_at"])
        assert created - timedelta(seconds=2) < stored <= datetime.now(UTC)
        earlier = format_datetime(stored - timedelta(seconds=1), usegmt=True)
        later = format_datetime(stored + timedelta(seconds=1), usegmt=True)
        for since, status in ((modified, 304), (later, 304), (earlier, 200), ("yesterday", 200)):
            assert http.get(url, headers={"If-Modified-Since": since}).status_code == status
        tag = {"If-None-Match": '"x"', "If-Modified-Since": later}
        assert http.get(url, headers=tag).status_code == 200, "a date counts only where no tag is sent"
        for validator, status in ((modified, 206), (later, 200), (earlier, 200)):
            assert http.get(url, headers={"Range": "bytes=0-9", "If-Range": validator}).status_code == status


def test_a_wrong_digest_creates_nothing(service: Service) -> None:
    wrong = base64.b64encode(hashlib.sha256(b"other").digest()).decode()
    with service.http() as http:
        before = http.get("/v1/checkpoints").json()["first_id"]
        blobs = service.blob_files()
        for header in ("Repr-Digest", "Content-Digest"):
            answer = http.post("/v1/checkpoints", content=b"some bytes", headers={header: f"sha-256=:{wrong}:"})
            assert answer.status_code == 422
            assert answer.json()["code"] == "digest_mismatch"
            assert hashlib.sha256(b"some bytes").hexdigest() in answer.json()["detail"]
        assert http.get("/v1/checkpoints").json()["first_id"] == before
        assert service.blob_files() == blobs
        assert http.post("/v1/checkpoints", content=b"x", headers={"Repr-Digest": "sha-256=:!!:"}).status_code == 422


def test_multipart_uploads_are_the_same_as_plain_ones(service: Service, tmp_path: Path) -> None:
    path = write_start(tmp_path)
    with service.http() as http, service.client() as client:
        made = http.post("/v1/checkpoints", files={"file": ("mine.safetensors", path.read_bytes())}).json()
        assert made["name"] == "mine.safetensors"
        assert made["sha256"] == hashlib.sha256(path.read_bytes()).hexdigest()
        assert wait_rejected(client, made["id"])["status"] == "ready"
        assert http.post("/v1/checkpoints", files={"other": b"x"}).status_code == 400


def torch_bytes(content: object) -> bytes:
    out = io.BytesIO()
    torch.save(content, out)
    return out.getvalue()


class Evil:
    def __reduce__(self):
        return (print, ("ran",))


@pytest.mark.parametrize(
    ("content", "params", "code"),
    [
        (lambda: b"this is no checkpoint", {}, "corrupt_file"),
        (lambda: b"", {}, "corrupt_file"),
        (lambda: torch_bytes(start_state())[:-1000], {}, "corrupt_file"),
        (lambda: torch_bytes({"w": Evil()}), {}, "unsafe_pickle"),
        (lambda: torch_bytes({"epoch": 3}), {}, "not_a_state_dict"),
        (lambda: torch_bytes(start_state()), {"architecture": "resnet32"}, "architecture_mismatch"),
        (lambda: torch_bytes({"a.weight": torch.zeros(3)}), {}, "unknown_architecture"),
        (lambda: torch_bytes(start_state() | {"fc.bias": torch.full((10,), float("nan"))}), {}, "non_finite_weights"),
    ],
)
def test_a_bad_checkpoint_stays_rejected_and_its_bytes_go(
    service: Service, content, params: dict[str, str], code: str
) -> None:
    data = content()
    with service.http() as http, service.client() as client:
        made = http.post("/v1/checkpoints", params=params, content=data)
        assert made.status_code == 201
        assert made.json()["status"] == "processing"
        found = wait_rejected(client, made.json()["id"])
        assert (found["status"], found["error"]["code"]) == ("rejected", code)
        # The verdict is written first: a row must never outlive the bytes that it names.
        wait_until(lambda: hashlib.sha256(data).hexdigest() not in service.blob_files(), 10, "the end of the bytes")
        gone = http.get(f"/v1/checkpoints/{found['id']}/content")
        assert (gone.status_code, gone.json()["code"]) == (409, "checkpoint_not_ready")


def test_an_architecture_that_does_not_exist_is_refused_at_once(service: Service) -> None:
    with service.http() as http:
        answer = http.post("/v1/checkpoints", params={"architecture": "resnet19"}, content=b"x")
        assert answer.status_code == 422
        assert "resnet19" in answer.json()["detail"]


def test_a_bad_archive_stays_rejected_and_its_bytes_go(service: Service) -> None:
    with service.http() as http, service.client() as client:
        made = http.post("/v1/datasets", content=b"no archive", headers={"Content-Type": "application/zip"}).json()
        found = wait_rejected(client, made["id"])
        assert (found["status"], found["error"]["code"]) == ("rejected", "invalid_archive")
        wait_until(lambda: hashlib.sha256(b"no archive").hexdigest() not in service.blob_files(), 10, "their end")


@pytest.mark.parametrize(
    ("body", "code", "pointer"),
    [
        ({"source": "builtin:nothing"}, "validation_failed", "/source"),
        ({"source": "file:///etc"}, "validation_failed", "/source"),
        ({"source": "ftp://x"}, "validation_failed", "/source"),
        ({"source": "builtin:digits", "more": 1}, "validation_failed", "/more"),
        ({}, "validation_failed", "/source"),
    ],
)
def test_dataset_sources_are_checked(service: Service, body: dict, code: str, pointer: str) -> None:
    with service.http() as http:
        answer = http.post("/v1/datasets", json=body)
    assert (answer.status_code, answer.json()["code"]) == (422, code)
    assert answer.json()["errors"][0]["pointer"] == pointer


@pytest.mark.parametrize(
    ("change", "pointer"),
    [
        ({"method": {"cycles": 0}}, "/method/cycles"),
        ({"method": {"high": {"lr": -0.1}}}, "/method/high/lr"),
        ({"method": {"low": {"lr": "fast"}}}, "/method/low/lr"),
        ({"method": {"type": "magic"}}, "/method/type"),
        ({"method": {"pull": -1}}, "/method/pull"),
        ({"method": {"hihg": {}}}, "/method/hihg"),
        ({"recipe": {"batch_size": 1}}, "/recipe/batch_size"),
        ({"recipe": {"optimizer": {"name": "sgdd"}}}, "/recipe/optimizer/name"),
        ({"recipe": {"normalize": {"mean": [0.5], "std": [0]}}}, "/recipe/normalize/std/0"),
        ({"seed": -1}, "/seed"),
        ({"metadata": {"a": 3}}, "/metadata/a"),
        ({"unknown": True}, "/unknown"),
        ({"checkpoint": None}, "/checkpoint"),
    ],
)
def test_a_job_that_does_not_fit_the_schema_names_the_place(
    service: Service, ready: tuple[str, str], change: dict, pointer: str
) -> None:
    with service.http() as http:
        answer = http.post("/v1/jobs", json={"checkpoint": ready[0], "dataset": ready[1], **change})
    assert (answer.status_code, answer.json()["code"]) == (422, "validation_failed")
    assert pointer in [error["pointer"] for error in answer.json()["errors"]], answer.json()
    assert pointer in answer.json()["detail"]


def test_odd_requests_are_problems_never_a_500(service: Service, ready: tuple[str, str]) -> None:
    body = {"checkpoint": ready[0], "dataset": ready[1], "dry_run": True}
    with service.http() as http:
        nul = http.post("/v1/jobs", json=body | {"dry_run": False, "name": "a\0b", "method": {"cycles": 1}})
        assert nul.status_code in (201, 422)
        if nul.status_code == 201:
            http.post(f"/v1/jobs/{nul.json()['id']}/cancel")
        assert http.get("/v1/jobs/%00").status_code in (404, 422)
        deep = http.post("/v1/datasets", content=b"[" * 30_000, headers={"Content-Type": "application/json"})
        assert deep.status_code in (400, 422)
        large = http.post("/v1/jobs", content=b" " * 2_000_000, headers={"Content-Type": "application/json"})
        assert (large.status_code, large.json()["code"]) == (413, "too_large")

        def pieces():
            for _ in range(40):
                yield b" " * 100_000

        assert http.post("/v1/jobs", content=pieces(), headers={"Content-Type": "application/json"}).status_code in (
            400,
            413,
        )
        job = http.post("/v1/jobs", json=body | {"dry_run": False, "method": {"cycles": 1}}).json()["id"]
        for digits in ("9" * 30, "9" * 5000, "x"):
            page = http.get(f"/v1/jobs/{job}/events", params={"after": f"evt_{job.removeprefix('job_')}{digits}"})
            assert page.status_code == 422
        url = f"/v1/checkpoints/{ready[0]}/content"
        assert http.get(url, headers={"Range": f"bytes=0-{'9' * 5000}"}).status_code == 200
        http.post(f"/v1/jobs/{job}/cancel")


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"classes": list(range(100_000))}, "/classes/0"),
        ({"recipe": {"class_weights": [-1] * 100_000}}, "/recipe/class_weights/0"),
        ({f"unknown{n}": n for n in range(50_000)}, ""),
        ({"recipe": {f"unknown{n}": n for n in range(50_000)}}, "/recipe"),
        ({f"unknown{n}": n for n in range(20)}, "/unknown0"),
    ],
)
def test_a_hundred_thousand_mistakes_are_told_at_once_and_in_few_words(
    service: Service, ready: tuple[str, str], change: dict, named: str
) -> None:
    with service.http() as http:
        answer = http.post("/v1/jobs", json={"checkpoint": ready[0], "dataset": ready[1], **change}, timeout=20)
    assert answer.status_code == 422
    assert named in [error["pointer"] for error in answer.json()["errors"]]
    assert len(answer.content) < 30_000


def test_a_body_that_is_not_json(service: Service) -> None:
    with service.http() as http:
        answer = http.post("/v1/jobs", content=b"{nope", headers={"Content-Type": "application/json"})
    assert (answer.status_code, answer.json()["code"]) == (400, "bad_request")


def test_a_job_needs_a_ready_checkpoint_and_dataset(service: Service, ready: tuple[str, str]) -> None:
    with service.http() as http, service.client() as client:
        bad = http.post("/v1/checkpoints", content=b"bad").json()["id"]
        wait_rejected(client, bad)
        answer = http.post("/v1/jobs", json={"checkpoint": bad, "dataset": ready[1]})
        assert (answer.status_code, answer.json()["code"]) == (409, "checkpoint_not_ready")
        assert "corrupt_file" in answer.json()["detail"]
        empty = http.post("/v1/datasets", content=b"bad").json()["id"]
        wait_rejected(client, empty)
        answer = http.post("/v1/jobs", json={"checkpoint": ready[0], "dataset": empty})
        assert (answer.status_code, answer.json()["code"]) == (409, "dataset_not_ready")
        for body in ({"checkpoint": "ckpt_none", "dataset": ready[1]}, {"checkpoint": ready[0], "dataset": "ds_none"}):
            assert http.post("/v1/jobs", json=body).status_code == 404


@pytest.mark.parametrize(
    ("change", "code"),
    [
        ({"classes": ["a", "b"]}, "classes_mismatch"),
        ({"classes": list("012345678x")}, "classes_mismatch"),
        ({"recipe": {"normalize": {"mean": [0.5, 0.5], "std": [1, 1]}}}, "channels_mismatch"),
    ],
)
def test_what_does_not_fit_together_is_refused(
    service: Service, ready: tuple[str, str], change: dict, code: str
) -> None:
    with service.http() as http:
        answer = http.post("/v1/jobs", json={"checkpoint": ready[0], "dataset": ready[1], **change})
    assert (answer.status_code, answer.json()["code"]) == (422, code)


def test_labels_beyond_num_classes_are_refused(service: Service, ready: tuple[str, str], tmp_path: Path) -> None:
    state = dict(start_state())
    state["fc.weight"], state["fc.bias"] = state["fc.weight"][:5], state["fc.bias"][:5]
    (tmp_path / "five.pth").write_bytes(torch_bytes(state))
    with service.http() as http, service.client() as client:
        five = client.checkpoints.create(tmp_path / "five.pth")
        answer = http.post("/v1/jobs", json={"checkpoint": five.id, "dataset": ready[1]})
    assert (answer.status_code, answer.json()["code"]) == (422, "classes_mismatch")
    assert "10 classes" in answer.json()["detail"]
    assert "5 outputs" in answer.json()["detail"]


def test_a_dry_run_resolves_everything_and_creates_nothing(service: Service, ready: tuple[str, str]) -> None:
    with service.http() as http:
        before = http.get("/v1/jobs").json()["first_id"]
        answer = http.post("/v1/jobs", json={"checkpoint": ready[0], "dataset": ready[1], "dry_run": True})
        assert answer.status_code == 200
        job = answer.json()
        assert job["id"] is None
        assert http.get("/v1/jobs").json()["first_id"] == before
    method = job["method"]
    assert (method["type"], method["cycles"], method["pull"]) == ("cyclic_swa", 6, 0.0005)
    assert (method["high"]["lr"], method["high"]["epochs"]) == (0.003125, 1)
    assert (method["low"]["lr"], method["low"]["epochs"]) == (0.0003125, 1)
    assert (method["include_start"], method["average"]) == (False, "uniform")
    assert job["recipe"]["batch_size"] == 8
    assert job["recipe"]["image_size"] == [8, 8]
    assert job["recipe"]["optimizer"]["name"] == "sgd"
    assert job["recipe"]["optimizer"]["weight_decay"] == 5e-4
    assert job["recipe"]["precision"] == "float32"
    assert job["estimate"]["steps"] == 6 * 2 * 15
    assert "auto" not in json.dumps(job)


def test_classes_that_do_not_fill_the_outputs_are_warned_of(
    service: Service, ready: tuple[str, str], tmp_path: Path
) -> None:
    with service.client() as client, service.http() as http:
        five = client.datasets.create(write_part(tmp_path)).id
        body = {"checkpoint": ready[0], "dataset": five, "method": {"cycles": 1}}
        tried = http.post("/v1/jobs", json=body | {"dry_run": True}).json()
        assert [one["pointer"] for one in tried["warnings"]] == ["/dataset", "/dataset"]
        assert "5 classes and the checkpoint's network 10 outputs" in tried["warnings"][0]["detail"]
        assert "there is no val/" in tried["warnings"][1]["detail"]
        fits = http.post("/v1/jobs", json={"checkpoint": ready[0], "dataset": ready[1], "dry_run": True}).json()
        assert fits["warnings"] == []
        job = http.post("/v1/jobs", json=body).json()
        first = http.get(f"/v1/jobs/{job['id']}/events?type=log&limit=1").json()["data"][0]["data"]
        assert first == {"level": "warning", "message": tried["warnings"][0]["detail"]}
        assert job["warnings"] is None
        client.jobs.cancel(job["id"])


def test_an_idempotency_key_answers_once(service: Service, ready: tuple[str, str]) -> None:
    body = {"checkpoint": ready[0], "dataset": ready[1], "name": "once", "method": {"cycles": 1}}
    key = {"Idempotency-Key": f"key-{service.port}"}
    with service.http() as http:
        first = http.post("/v1/jobs", json=body, headers=key)
        again = http.post("/v1/jobs", json=body, headers=key)
        assert first.status_code == again.status_code == 201
        assert again.json() == first.json()
        assert "idempotent-replayed" not in first.headers
        assert again.headers["idempotent-replayed"] == "true"
        other = http.post("/v1/jobs", json=body | {"seed": 1}, headers=key)
        assert (other.status_code, other.json()["code"]) == (409, "idempotency_key_reused")
        blobs = service.blob_files()
        data = b"twice the same"
        made = [http.post("/v1/checkpoints", content=data, headers={"Idempotency-Key": "up"}).json() for _ in range(2)]
        assert made[0]["id"] == made[1]["id"]
        assert not {name for name in service.blob_files() - blobs if len(name) == 32}, "no temporary file is left"
    with service.client() as client:
        client.jobs.wait(first.json()["id"], timeout=120)


def test_architectures_are_listed_with_their_sizes(service: Service) -> None:
    with service.http() as http:
        found = http.get("/v1/architectures").json()
    assert {item["name"] for item in found["data"]} == set(ARCHITECTURES)
    assert not found["has_more"]
    entry = next(item for item in found["data"] if item["name"] == "resnet20")
    assert (entry["size"], entry["optimizer"], entry["peak_lr"]) == (32, "sgd", 0.1)


def test_small_answers_do_not_wait_for_an_acknowledgement(service: Service) -> None:
    # The service listens on an inherited socket, as under `wbar up`. Without TCP_NODELAY an answer takes 40 ms.
    waits = []
    with service.http() as http:
        for _ in range(20):
            began = time.perf_counter()
            assert http.get("/healthz").status_code == 200
            waits.append(time.perf_counter() - began)
    assert median(waits) < 0.02


def test_answers_are_as_the_schema_says(service: Service, ready: tuple[str, str]) -> None:
    with service.client() as client, service.http() as http:
        made = client.jobs.create(checkpoint=ready[0], dataset=ready[1], method={"type": "cyclic_swa", "cycles": 1})
        assert made.id is not None
        client.jobs.wait(made.id)
        schema = http.get("/openapi.json").json()
        job = {"job_id": made.id, "checkpoint_id": ready[0], "dataset_id": ready[1]}
        created = http.post("/v1/uploads", headers={"Tus-Resumable": "1.0.0", "Upload-Length": "5"})
        job["upload_id"] = created.json()["id"]
        hook = http.post("/v1/webhooks", json={"url": "https://hooks.example/"}).json()["id"]
        job |= {"webhook_id": hook, "delivery_id": http.post(f"/v1/webhooks/{hook}/ping").json()["id"]}
        job["key_id"] = http.get("/v1/keys").json()["first_id"]
        job["merge_id"] = http.post("/v1/merges", json={"checkpoints": [ready[0], made.id]}).json()["id"]
        common = {"checkpoint": ready[0], "dataset": ready[1], "method": {"cycles": 1}, "flatness": True}
        job["study_id"] = client.studies.create(common, batch_sizes=[60], scaling=["sqrt"], rates=[0.01]).id
        client.studies.wait(job["study_id"], timeout=120)
        asked = []
        for path, operations in schema["paths"].items():
            content = operations.get("get", {}).get("responses", {}).get("200", {}).get("content", {})
            if "application/json" in content:
                answer = http.get(path.format(**job))
                if path == "/v1/jobs/{job_id}/signature":  # nothing is signed here
                    assert answer.json()["code"] == "no_weights"
                    continue
                assert answer.status_code == 200, path
                written = content["application/json"]["schema"]
                jsonschema.validate(answer.json(), {**written, "components": schema["components"]})
                asked.append(path)
    assert {"/v1/jobs", "/v1/jobs/{job_id}", "/v1/jobs/{job_id}/metrics", "/v1/checkpoints/{checkpoint_id}"} <= set(
        asked
    )


def test_health_readiness_and_documentation(service: Service) -> None:
    with service.http(None) as http:
        assert http.get("/healthz").json()["status"] == "ok"
        found = http.get("/readyz").json()
        assert found["status"] == "ready"
        assert found["checks"] == {"database": "ok", "broker": "ok", "blobs": "ok", "workers": "ok"}
        assert http.get("/").headers["location"] == "/sign-in", "the dashboard"
        page = http.get("/docs").text
        assert "swagger" in page.lower()
        assert "cdn." not in page
        schema = http.get("/openapi.json").json()
    paths = set(schema["paths"])
    assert {
        "/v1/checkpoints",
        "/v1/datasets",
        "/v1/jobs",
        "/v1/jobs/{job_id}/events",
        "/v1/jobs/{job_id}/weights",
    } <= paths
    assert schema["components"]["schemas"]["Job"]["example"]["object"] == "job"
    assert schema["paths"]["/v1/jobs"]["post"]["responses"]["422"]["content"].keys() == {"application/problem+json"}


def test_a_checkpoint_that_a_job_needs_cannot_be_deleted(
    service: Service, ready: tuple[str, str], tmp_path: Path
) -> None:
    with service.client() as client, service.http() as http:
        # Names that no other test uses: equal contents would share the blob, and keep it.
        own = client.checkpoints.create(write_start(tmp_path, prefix="module._orig_mod."))
        job = client.jobs.create(checkpoint=own.id, dataset=ready[1], method={"cycles": 1000})
        for path in (f"/v1/checkpoints/{own.id}", f"/v1/datasets/{ready[1]}"):
            answer = http.delete(path)
            assert (answer.status_code, answer.json()["code"]) == (409, "in_use")
        client.jobs.cancel(job.id)
        assert http.delete(f"/v1/checkpoints/{own.id}").json() == {
            "id": own.id,
            "object": "checkpoint",
            "deleted": True,
        }
        assert http.get(f"/v1/checkpoints/{own.id}").status_code == 404
        assert http.get(f"/v1/jobs/{job.id}").json()["checkpoint"] == own.id
        assert own.sha256 not in service.blob_files()
