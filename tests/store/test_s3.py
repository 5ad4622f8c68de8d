"""Blobs in S3, through a real HTTP endpoint: parts, ranges, and nothing left behind."""

import hashlib
import os
import socket
import subprocess
import sys
import urllib.request
from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path

import obstore
import pytest
from sqlalchemy import insert

from tests.conftest import wait_until
from wbar_store.blobs import Blobs
from wbar_store.database import Database, now
from wbar_store.migrate import upgrade
from wbar_store.tables import checkpoints

MIB = 1024**2


@pytest.fixture(scope="module")
def endpoint() -> Iterator[str]:
    """A server that speaks S3, on a free port."""
    pytest.importorskip("moto.server")
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    command = [sys.executable, "-P", "-m", "moto.server", "-H", "127.0.0.1", "-p", str(port)]
    server = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    url = f"http://127.0.0.1:{port}"

    def answers() -> bool:
        try:
            with urllib.request.urlopen(f"{url}/moto-api/data.json", timeout=2) as answer:
                return bool(answer.status == 200)
        except OSError:
            return False

    try:
        wait_until(answers, 60, "the S3 server")
        yield url
    finally:
        server.terminate()
        server.wait()


@pytest.fixture
def blobs(endpoint: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Blobs]:
    """A bucket of its own, named as an operator names it: by the environment that every S3 tool reads."""
    for name in [name for name in os.environ if name.startswith("AWS_")]:
        monkeypatch.delenv(name)
    settings = {
        "ENDPOINT_URL": endpoint,
        "ACCESS_KEY_ID": "x",
        "SECRET_ACCESS_KEY": "x",
        "REGION": "us-east-1",
        "ALLOW_HTTP": "true",
    }
    for name, value in settings.items():
        monkeypatch.setenv(f"AWS_{name}", value)
    bucket = tmp_path.name.replace("_", "-").lower()[:60].strip("-")
    urllib.request.urlopen(urllib.request.Request(f"{endpoint}/{bucket}", method="PUT"), timeout=10).close()
    database = Database(f"sqlite:///{tmp_path / 'wbar.db'}")
    upgrade(database)
    yield Blobs(f"s3://{bucket}/wbar", database)
    database.dispose()


def names(blobs: Blobs) -> list[str]:
    return sorted(entry["path"] for page in obstore.list(blobs.store) for entry in page)


def keep(blobs: Blobs, content: bytes) -> str:
    upload = blobs.receive()
    for begin in range(0, len(content), MIB):
        upload.write(content[begin : begin + MIB])
    received = upload.finish()
    with blobs.keep(received) as sha256, blobs.references.database.write() as connection:
        values = {
            "tenant": "t",
            "name": "n",
            "status": "ready",
            "bytes": 1,
            "given": {},
            "attempts": 0,
            "sha256": sha256,
        }
        connection.execute(insert(checkpoints).values(id=sha256[:8], content=sha256, created_at=now(), **values))
    return sha256


@pytest.mark.parametrize("chunks", [1, 3, 30])
def test_two_buffers_in_turn_are_stored_as_they_were(blobs: Blobs, chunks: int) -> None:
    buffers, content = [bytearray(MIB), bytearray(MIB)], os.urandom(chunks * MIB)
    upload = blobs.receive()
    for n in range(chunks):
        buffers[n % 2][:] = content[n * MIB : (n + 1) * MIB]
        upload.write(memoryview(buffers[n % 2]))
    with blobs.keep(upload.finish()) as sha256:
        stored = b"".join(blobs.chunks(sha256, 0, len(content)))
    assert hashlib.sha256(stored).hexdigest() == sha256
    assert stored == content


def test_content_comes_in_parts_and_goes_in_ranges(blobs: Blobs, tmp_path: Path) -> None:
    content = os.urandom(20 * MIB)
    sha256 = keep(blobs, content)
    assert names(blobs) == [Blobs.path(sha256)]
    assert blobs.size(sha256) == len(content)
    for begin, end in ((0, len(content)), (5, 6), (8 * MIB - 1, 8 * MIB + 1), (len(content) - 1, len(content)), (7, 7)):
        assert b"".join(blobs.chunks(sha256, begin, end)) == content[begin:end]
    blobs.fetch(sha256, tmp_path / "fetched")
    assert (tmp_path / "fetched").read_bytes() == content
    blobs.check()


def test_what_is_not_needed_goes(blobs: Blobs) -> None:
    kept = keep(blobs, b"kept")
    aborted = blobs.receive()
    aborted.write(b"x" * 9 * MIB)
    aborted.abort()
    unfinished = blobs.receive()
    unfinished.write(b"y")
    unfinished.finish()
    obstore.put(blobs.store, Blobs.path("ab" * 32), b"12345")
    assert blobs.sweep_temporaries() == 0
    soon = timedelta(seconds=-5)
    assert blobs.sweep_temporaries(soon) == 1
    assert blobs.collect_garbage(soon).strays == {"ab" * 32: 5}
    assert names(blobs) == [Blobs.path(kept)]
