"""Strangers and careless clients: refused early, told why in few words, and nothing of theirs stays."""

import json
import os
import socket
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.conftest import Service
from tests.service.app import App, app_in

MIB = 1024**2
JSON = {"Content-Type": "application/json"}  # written by hand where httpx could not write it


@pytest.fixture
def app(tmp_path: Path) -> Iterator[App]:
    with app_in(tmp_path, max_checkpoint_bytes=5 * MIB, max_dataset_bytes=5 * MIB) as started:
        yield started


def resident(process: int) -> int:
    """The bytes of memory that a process has."""
    return int(Path(f"/proc/{process}/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def test_a_stranger_is_answered_before_the_body_is_sent(service: Service) -> None:
    with socket.create_connection(("127.0.0.1", service.port), timeout=10) as connection:
        for kind in ("text/plain", "application/json", "application/octet-stream"):
            head = f"POST /v1/jobs HTTP/1.1\r\nHost: x\r\nContent-Type: {kind}\r\nContent-Length: 4000000000\r\n\r\n"
            with socket.create_connection(("127.0.0.1", service.port), timeout=10) as connection:
                connection.sendall(head.encode())
                assert connection.recv(65536).startswith(b"HTTP/1.1 401 ")


def test_what_a_stranger_sends_is_not_kept_in_memory(service: Service) -> None:
    process = service.parts["api"].pid
    with service.http(None) as http:
        http.get("/healthz")
        before = resident(process)
        for kind in ("text/plain", "application/x+json"):
            body = b"[[]," * (8 * MIB)
            assert http.post("/v1/jobs", content=body, headers={"Content-Type": kind}).status_code == 401
    assert resident(process) - before < 16 * MIB


@pytest.mark.parametrize("kind", ["application/json", "application/x+json", "text/plain", ""])
def test_a_body_that_is_read_into_memory_is_small(app: App, kind: str) -> None:
    answer = app.request("POST", "/v1/jobs", content=b"[[]," * MIB, headers={"Content-Type": kind})
    assert (answer.status_code, answer.json()["code"]) == (413, "too_large")

    async def announced_by_nobody() -> Any:
        for _ in range(20):
            yield b"[[]," * (MIB // 16)

    answer = app.request("POST", "/v1/jobs", content=announced_by_nobody(), headers={"Content-Type": kind})
    assert (answer.status_code, answer.json()["code"]) == (413, "too_large")


HOSTILE: dict[str, Any] = {
    "unknown fields": {f"field{i}": 1 for i in range(10_000)},
    "tags": {"metadata": {f"k{i}": 1 for i in range(60_000)}},
    "weights": {"method": {"type": "soup", "checkpoints": ["a", "b"], "weights": [[]] * 200_000}},
    "classes": {"classes": [1] * 100_000},
    "checkpoints": {"method": {"type": "soup", "checkpoints": [1] * 100_000}},
    "freeze": {"recipe": {"freeze": [1] * 100_000}},
}


@pytest.mark.parametrize("name", HOSTILE)
def test_many_mistakes_are_told_in_few_words(app: App, name: str) -> None:
    body = {"checkpoint": "ckpt_1", "dataset": "ds_1"} | HOSTILE[name]
    answer = app.request("POST", "/v1/jobs", json=body)
    assert (answer.status_code, answer.json()["code"]) == (422, "validation_failed")
    assert 1 <= len(answer.json()["errors"]) <= 20
    assert len(answer.content) < 10_000


@pytest.mark.parametrize("text", ["\ud800", "a\0b", "   ", "", "=cmd()", "line\nbreak", "\x7f"])
def test_a_name_that_cannot_be_shown_is_refused(app: App, text: str) -> None:
    inputs = {"checkpoint": "ckpt_1", "dataset": "ds_1"}
    for body in (inputs | {"name": text}, inputs | {"classes": ["cat", text]}, inputs | {"metadata": {text: "x"}}):
        answer = app.request("POST", "/v1/jobs", content=json.dumps(body), headers=JSON)
        assert (answer.status_code, answer.json()["code"]) == (422, "validation_failed"), body
    assert app.request("POST", "/v1/keys", content=json.dumps({"name": text}), headers=JSON).status_code == 422
    if text and text != "\ud800":  # no query has one
        for path in ("/v1/checkpoints", "/v1/datasets"):
            answer = app.request("POST", path, params={"name": text}, content=b"x")
            assert (answer.status_code, answer.json()["code"]) == (422, "validation_failed")
    for path in ("/v1/checkpoints", "/v1/datasets", "/v1/jobs"):
        assert app.request("GET", path).json()["data"] == []


def test_a_tags_value_may_be_anything_that_can_be_shown(app: App) -> None:
    inputs = {"checkpoint": "ckpt_1", "dataset": "ds_1"}
    for value, status in (("=1", 404), ("", 404), ("ü 🙂", 404), ("\ud800", 422), ("a\0", 422)):
        answer = app.request("POST", "/v1/jobs", content=json.dumps(inputs | {"metadata": {"k": value}}), headers=JSON)
        assert answer.status_code == status, value  # 404: there is no such checkpoint, and all else fits


def test_the_file_name_of_a_form_is_a_name_too(app: App) -> None:
    for name, status in (("resnet.pth", 201), ("=cmd.pth", 422), ("  ", 422)):
        answer = app.request("POST", "/v1/checkpoints", files={"file": (name, b"x" * 100)})
        assert answer.status_code == status, name
    body = b'--b\r\nContent-Disposition: form-data; name="file"; filename="x.pth"\r\n\r\nbytes\r\n--b--\r\n'
    answer = app.request(
        "POST", "/v1/checkpoints", content=body, headers={"Content-Type": "MULTIPART/form-data; boundary=b"}
    )
    assert (answer.status_code, answer.json()["name"], answer.json()["bytes"]) == (201, "x.pth", 5)


def test_a_form_is_counted_while_it_is_read(app: App, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path / "spool"))
    (tmp_path / "spool").mkdir()
    sent = 0

    async def body() -> Any:
        nonlocal sent
        yield b'--b\r\nContent-Disposition: form-data; name="file"; filename="x.pth"\r\n\r\n'
        for _ in range(300):
            sent += MIB
            yield b"x" * MIB
        yield b"\r\n--b--\r\n"

    headers = {"Content-Type": "multipart/form-data; boundary=b"}
    answer = app.request("POST", "/v1/checkpoints", content=body(), headers=headers)
    assert (answer.status_code, answer.json()["code"]) == (413, "too_large")
    assert sent <= 7 * MIB
    assert not any((tmp_path / "spool").iterdir())
    assert not any((tmp_path / "blobs" / "tmp").iterdir())


@pytest.mark.parametrize(
    "digest", ["", "sha-256", "sha-256=:!!:", "sha-256=:YWJj:", "md5=:1B2M2Y8AsgTpgAmY7PhCfg==:", "nonsense, =:"]
)
def test_a_digest_that_cannot_be_read_is_not_ignored(app: App, digest: str) -> None:
    for name in ("Repr-Digest", "Content-Digest"):
        answer = app.request("POST", "/v1/checkpoints", content=b"x", headers={name: digest})
        assert (answer.status_code, answer.json()["code"]) == (422, "validation_failed")
    assert app.request("GET", "/v1/checkpoints").json()["data"] == []


def test_a_host_header_does_not_lead_anywhere(app: App) -> None:
    for path in ("/", "/v1/jobs/", "/v1/checkpoints/", "/docs/"):
        answer = app.request("GET", path, headers={"Host": "evil.example"})
        assert "evil" not in answer.headers.get("location", ""), path


@pytest.mark.parametrize(
    ("path", "methods"),
    [("/v1/jobs", "GET, HEAD, POST"), ("/v1/jobs/job_1", "DELETE, GET, HEAD"), ("/v1/jobs/job_1/weights", "GET, HEAD")],
)
def test_a_wrong_method_is_answered_with_all_that_would_do(app: App, path: str, methods: str) -> None:
    answer = app.request("PUT", path)
    assert (answer.status_code, answer.headers["allow"]) == (405, methods)
    assert answer.json()["code"] == "method_not_allowed"


def test_conditions_on_metadata_are_few(app: App) -> None:
    answer = app.request("GET", "/v1/jobs", params={f"metadata[k{i}]": "x" for i in range(1200)})
    assert (answer.status_code, answer.json()["code"]) == (422, "validation_failed")
    assert app.request("GET", "/v1/jobs", params={f"metadata[k{i}]": "x" for i in range(16)}).status_code == 200


@pytest.mark.parametrize("after", ["ckpt_a\0", "ckpt_", "ckpt_A", "ckpt_a/../b", "job_1", "\0"])
def test_a_page_begins_after_an_id(app: App, after: str) -> None:
    answer = app.request("GET", "/v1/checkpoints", params={"after": after})
    assert (answer.status_code, answer.json()["code"]) == (422, "validation_failed")


def test_a_nul_names_nothing(app: App) -> None:
    assert app.request("GET", "/v1/jobs/%00").status_code == 404
    assert app.request("DELETE", "/v1/datasets/ds_%00").status_code == 404
    for params in ({"checkpoint": "a\0"}, {"metadata[a]": "\0"}, {"metadata[\0]": "a"}):
        assert app.request("GET", "/v1/jobs", params=params).status_code == 422


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of three megabytes."""
    if os.geteuid() != 0:
        pytest.skip("only root mounts file systems")
    folder = tmp_path / "small"
    folder.mkdir()
    if subprocess.run(["mount", "-t", "tmpfs", "-o", "size=3m", "tmpfs", folder], capture_output=True).returncode:
        pytest.skip("no file systems can be mounted here")
    yield folder
    subprocess.run(["umount", "--lazy", folder], check=True)


def test_a_full_disk_says_so_and_everything_goes_on_when_there_is_room(tmp_path: Path, small_disk: Path) -> None:
    with app_in(tmp_path, blobs_url=f"file://{small_disk}") as app:
        for options in ({"content": b"x" * 8 * MIB}, {"files": {"file": ("x.pth", b"x" * 8 * MIB)}}):
            answer = app.request("POST", "/v1/checkpoints", **options)
            assert (answer.status_code, answer.json()["code"]) == (507, "storage_full")
            assert app.request("GET", "/v1/checkpoints").json()["data"] == []
            assert [path for path in small_disk.rglob("*") if path.is_file()] == []
        assert app.request("POST", "/v1/checkpoints", content=b"x" * MIB).status_code == 201


def test_a_full_database_says_so(tmp_path: Path, small_disk: Path) -> None:
    (small_disk / "ballast").write_bytes(b"x" * int(1.8 * MIB))
    with app_in(small_disk) as app:
        taken = small_disk / "rest"
        with open(taken, "wb", buffering=0) as file:
            try:
                while True:
                    file.write(b"x" * 4096)
            except OSError:
                pass
        answer = app.request("POST", "/v1/keys", json={"name": "x" * 200})
        assert (answer.status_code, answer.json()["code"]) == (507, "storage_full")
        taken.unlink()
        assert app.request("POST", "/v1/keys", json={"name": "x" * 200}).status_code == 201


@pytest.mark.parametrize(
    "source",
    [
        "file:///allowed/.\t./secret/ds", "file:///allowed/.\n./secret", "file:///allowed/../secret", "file:///allowed",
        "file:///allowed/%2e%2e/secret", "file:///allowed/%252e%252e/secret", "file:///allowed//secret", "file:///allowed/.",
        "file://host/allowed/x", "file:///allowedly/x", "file:///allowed/x?y", "file:///allowed/x#y", "file:///allowed/\\x",
        "file:allowed/x", "s3://bucket/sets", "s3://bucket/sets/../x", "s3://bucket/sets/x?endpoint=http://evil",
        "s3://other/sets/x", "s3://bucket/setsx/y", "s3://bucket/sets/%2e%2e/x",
    ],
)  # fmt: skip
def test_a_source_outside_the_roots_is_refused(tmp_path: Path, source: str) -> None:
    with app_in(tmp_path, sources=["file:///allowed/", "s3://bucket/sets"]) as app:
        answer = app.request("POST", "/v1/datasets", json={"source": source})
        assert (answer.status_code, answer.json()["code"]) == (422, "validation_failed")
        for good in ("file:///allowed/x/y.tar", "s3://bucket/sets/a b.tar", "file:///allowed/%C3%BC"):
            assert app.request("POST", "/v1/datasets", json={"source": good}).status_code == 201
