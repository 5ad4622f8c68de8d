"""Uploads in parts on running services: real clients of tus, connections that end, processes that are killed."""

import hashlib
import os
import signal
import socket
import subprocess
import sys
import threading
from datetime import UTC, datetime, timedelta
from pathlib import Path

import httpx
import pytest
from tusclient.client import TusClient

from tests.conftest import Broker, Service, fresh_database, wait_until
from tests.service.app import app_in
from tests.service.test_uploads import BYTES, CONTENT, TUS, begin, begin_at, finished, named, offset_of, store_of
from tests.service.test_uploads import send as send_to
from tests.store.test_s3 import blobs, endpoint, names  # noqa: F401  # a bucket
from wbar_store.blobs import Blobs

MIB = 1024**2


def head(service: Service, path: str, length: int, offset: int = 0) -> socket.socket:
    """Begin a PATCH that announces so many bytes, and return its connection."""
    connection = socket.create_connection(("127.0.0.1", service.port), timeout=30)
    lines = [
        f"PATCH {path} HTTP/1.1", "Host: wbar", f"Authorization: Bearer {service.key}", f"Content-Length: {length}",
        f"Upload-Offset: {offset}", *(f"{name}: {value}" for name, value in BYTES.items()),
    ]  # fmt: skip
    connection.sendall("\r\n".join([*lines, "", ""]).encode())
    return connection


def offset(http: httpx.Client, path: str) -> int:
    return int(http.head(path, headers=TUS).headers["upload-offset"])


def send(http: httpx.Client, path: str, begin: int, content: bytes) -> httpx.Response:
    return http.patch(path, content=content, headers=BYTES | {"Upload-Offset": str(begin)})


def sha256_of_made(http: httpx.Client, path: str) -> str:
    made = http.post("/v1/checkpoints", json=named(path))
    assert made.status_code == 201, made.text
    return str(made.json()["sha256"])


def test_a_connection_that_ends_in_the_middle_leaves_what_has_arrived(service: Service) -> None:
    content = os.urandom(5 * MIB)
    with service.http() as http:
        path = begin_at(http, len(content))
        with head(service, path, len(content)) as connection:
            connection.sendall(content[: 3 * MIB + 17])
        wait_until(lambda: offset(http, path) == 3 * MIB + 17, 20, "the bytes of the broken connection")
        assert send(http, path, 3 * MIB + 17, content[3 * MIB + 17 :]).status_code == 204
        assert sha256_of_made(http, path) == hashlib.sha256(content).hexdigest()


def test_an_api_that_is_killed_has_what_it_says(breakable: Service) -> None:
    content = os.urandom(70 * MIB)
    breakable.start("api")
    with breakable.http() as http:
        path = begin_at(http, len(content))
        with head(breakable, path, len(content)) as connection:
            connection.sendall(content[:-5])
            wait_until(lambda: offset(http, path) > 0, 60, "a part that is durable")
            breakable.signal("api", signal.SIGKILL)
    breakable.start("api")
    with breakable.http() as http:
        kept = offset(http, path)
        assert 64 * MIB <= kept < len(content)
        named_parts = sum(
            one.stat().st_size for one in (breakable.folder / "blobs" / "parts").glob("*") if "#" not in one.name
        )
        assert named_parts >= kept
        assert send(http, path, kept, content[kept:]).status_code == 204
        assert sha256_of_made(http, path) == hashlib.sha256(content).hexdigest()


@pytest.mark.long
def test_what_expires_is_swept_by_the_sweeper(tmp_path: Path) -> None:
    broker = Broker()
    broker.start()
    with fresh_database("sqlite", tmp_path) as url:
        service = Service(tmp_path, url, broker, WBAR_UPLOADS_EXPIRE_AFTER="1")
        try:
            service.start("api")
            with service.http() as http:
                path = begin_at(http, 10)
                assert send(http, path, 0, b"01234").status_code == 204
                over = datetime.fromisoformat(http.get(path).json()["expires_at"])
                wait_until(lambda: datetime.now(UTC) > over, 5, "its end")
                service.start("sweep")
                wait_until(lambda: http.head(path, headers=TUS).status_code == 404, 30, "the sweeper")
            wait_until(lambda: service.blob_files() == set(), 10, "the end of its bytes")
        finally:
            service.stop()
            broker.kill()


@pytest.mark.long
def test_two_processes_of_the_api_let_one_writer_win(tmp_path: Path, database_url: str) -> None:
    broker = Broker()
    broker.start()
    services = []
    try:
        for name in ("one", "two"):
            (tmp_path / name).mkdir()
            blobs = f"file://{tmp_path / 'blobs'}"
            services.append(Service(tmp_path / name, database_url, broker, WBAR_BLOBS_URL=blobs))
            services[-1].start("api")
        key, content = services[0].key, os.urandom(3 * MIB)
        for _ in range(3):
            statuses, together = list[int](), threading.Barrier(4)
            with services[0].http(key) as http:
                path = begin_at(http, len(content))

            def write(of: Service, path: str, together: threading.Barrier, statuses: list[int]) -> None:
                with of.http(key) as http:
                    together.wait()
                    statuses.append(send(http, path, 0, content).status_code)

            threads = [
                threading.Thread(target=write, args=(services[n % 2], path, together, statuses)) for n in range(4)
            ]
            for thread in threads:
                thread.start()
            for thread in threads:
                thread.join()
            assert sorted(statuses) == [204, 409, 409, 409]
            with services[1].http(key) as http:
                assert offset(http, path) == len(content)
                assert sha256_of_made(http, path) == hashlib.sha256(content).hexdigest()
        assert list((tmp_path / "blobs" / "parts").iterdir()) == []
    finally:
        for service in services:
            service.stop()
        broker.kill()


def test_parts_lie_in_a_bucket(blobs: Blobs, tmp_path: Path) -> None:  # noqa: F811
    content = os.urandom(9 * MIB)  # one part of it is written to the bucket in several requests
    with app_in(tmp_path, blobs_url=f"s3://{tmp_path.name.replace('_', '-').lower()[:60].strip('-')}/wbar") as app:
        path = begin(app, len(content))
        assert send_to(app, path, 0, content[:-5]).status_code == 204
        assert [name.partition("/")[0] for name in names(blobs)] == ["parts"]
        assert offset_of(app, path) == len(content) - 5
        assert send_to(app, path, len(content) - 5, content[-5:]).status_code == 204
        made = app.request("POST", "/v1/checkpoints", json=named(path))
        assert made.json()["sha256"] == hashlib.sha256(content).hexdigest()
        assert names(blobs) == [Blobs.path(made.json()["sha256"])]
        gone = finished(app, CONTENT)
        assert len(names(blobs)) == 2
        assert app.request("DELETE", gone, headers=TUS).status_code == 204
        stray = store_of(app).blobs.receive_part()
        stray.write(b"of a process that was killed")
        stray.finish()
        finished(app, CONTENT)
        store_of(app).blobs.sweep_parts(store_of(app).uploads.named, timedelta(seconds=-5))
        assert len(names(blobs)) == 2, "the checkpoint, and the part that a row names"


@pytest.fixture
def tus(service: Service) -> TusClient:
    return TusClient(f"{service.url}/v1/uploads", headers={"Authorization": f"Bearer {service.key}"})


@pytest.mark.parametrize("checked", [False, True])
def test_tuspy_uploads(service: Service, tus: TusClient, tmp_path: Path, checked: bool) -> None:
    source = tmp_path / "start.pth"
    source.write_bytes(os.urandom(3 * MIB + 11))
    with open(source, "rb") as file:
        metadata = {"filename": "ünter.pth"}
        uploader = tus.uploader(file_stream=file, chunk_size=MIB, metadata=metadata, upload_checksum=checked)
        uploader.upload()
    with service.http() as http:
        shown = http.get(uploader.url).json()
        assert (shown["status"], shown["metadata"]) == ("finished", {"filename": "ünter.pth"})
        made = http.post("/v1/checkpoints", json={"upload": shown["id"]}).json()
    assert (made["name"], made["sha256"]) == ("ünter.pth", hashlib.sha256(source.read_bytes()).hexdigest())


# tuspy leaves files open that it has opened by their names: it does so in processes of its own here.
TUSPY = """
import sys
from tusclient.client import TusClient
from tusclient.storage.filestorage import FileStorage
url, key, source, urls, expected = sys.argv[1:]
client = TusClient(url, headers={"Authorization": "Bearer " + key})
uploader = client.uploader(source, chunk_size=2**20, store_url=True, url_storage=FileStorage(urls))
assert uploader.offset == int(expected), uploader.offset
uploader.upload() if uploader.offset else uploader.upload_chunk()
print(uploader.url)
"""


def test_tuspy_goes_on_in_another_process(service: Service, tmp_path: Path) -> None:
    source = tmp_path / "start.pth"
    source.write_bytes(os.urandom(3 * MIB))
    arguments = [f"{service.url}/v1/uploads", service.key, str(source), str(tmp_path / "urls.json")]
    for expected in (0, MIB):
        command = [sys.executable, "-P", "-c", TUSPY, *arguments, str(expected)]
        ran = subprocess.run(command, capture_output=True, text=True, timeout=60)
        assert ran.returncode == 0, ran.stderr
    with service.http() as http:
        assert sha256_of_made(http, ran.stdout.strip()) == hashlib.sha256(source.read_bytes()).hexdigest()
