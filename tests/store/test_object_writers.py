"""Digests beside the writing, and files that the disk writes while they grow: the same bytes, the same errors."""

import errno
import hashlib
import os
from pathlib import Path

import pytest

from wbar_store import object_writers
from wbar_store.blobs import Blobs
from wbar_store.database import Database
from wbar_store.object_writers import WORTH_A_THREAD, FileWriter, Sha256


@pytest.fixture
def blobs(database: Database, tmp_path: Path) -> Blobs:
    return Blobs(f"file://{tmp_path / 'blobs'}", database)


@pytest.fixture
def often_synced(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(object_writers, "SYNC_BYTES", 1000)


def files(tmp_path: Path) -> list[str]:
    return sorted(path.name for path in (tmp_path / "blobs").rglob("*") if path.is_file())


def test_the_digest_is_that_of_the_bytes_in_order() -> None:
    data = os.urandom(5 * WORTH_A_THREAD)
    ours, begin = Sha256(), 0
    assert ours.hexdigest() == hashlib.sha256().hexdigest()
    for length in (1, WORTH_A_THREAD, 0, 17, WORTH_A_THREAD - 1, 2 * WORTH_A_THREAD, 1000):
        ours.update(memoryview(data)[begin : begin + length])
        begin += length
    assert ours.hexdigest() == hashlib.sha256(data[:begin]).hexdigest()
    ours.update(data[begin:])
    assert ours.hexdigest() == hashlib.sha256(data).hexdigest()


@pytest.mark.usefixtures("often_synced")
def test_two_buffers_in_turn_are_enough_for_a_writer(blobs: Blobs) -> None:
    data, upload = os.urandom(8 * WORTH_A_THREAD), blobs.receive()
    buffers = [bytearray(WORTH_A_THREAD), bytearray(WORTH_A_THREAD)]
    for number in range(8):
        buffers[number % 2][:] = data[number * WORTH_A_THREAD :][:WORTH_A_THREAD]
        upload.write(memoryview(buffers[number % 2]))
    received = upload.finish()
    assert (received.sha256, received.bytes) == (hashlib.sha256(data).hexdigest(), len(data))
    with blobs.keep(received) as sha256:
        assert b"".join(blobs.chunks(sha256, 0, len(data))) == data


@pytest.mark.usefixtures("often_synced")
def test_parts_are_joined_in_order_and_stay(blobs: Blobs, tmp_path: Path) -> None:
    contents, names = [os.urandom(size) for size in (3_000_000, 1, 400_000)], []
    for content in contents:
        part = blobs.receive_part()
        part.write(content)
        names.append(part.finish().name)
    received = blobs.join(names)
    assert received.sha256 == hashlib.sha256(b"".join(contents)).hexdigest()
    with blobs.keep(received) as sha256:
        assert len(files(tmp_path)) == 4
        inodes = {path.stat().st_ino for path in (tmp_path / "blobs").rglob("*") if path.is_file()}
        assert len(inodes) == 4, "no blob is a file that something else may write to"
        assert b"".join(blobs.chunks(sha256, 0, received.bytes)) == b"".join(contents)
    with pytest.raises(FileNotFoundError):
        blobs.join([names[0], "parts/nothing"])
    assert len(files(tmp_path)) == 4, "the half of it is gone"


@pytest.mark.usefixtures("often_synced")
def test_a_write_that_the_disk_refuses_later_is_an_error_and_leaves_nothing(
    blobs: Blobs, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The kernel says so once, to the thread that waits for the disk."""

    def refuse(_: int) -> None:
        raise OSError(errno.EIO, "the disk does not take it")

    (tmp_path / "file").write_bytes(bytes(3_000_000))
    monkeypatch.setattr(os, "fdatasync", refuse)
    with pytest.raises(OSError, match="does not take it"):
        blobs.put_file(tmp_path / "file")
    assert files(tmp_path) == []
    upload = blobs.receive()
    upload.write(bytes(2000))
    with pytest.raises(OSError, match="does not take it"):
        upload.finish()
    upload.abort()
    assert files(tmp_path) == []


def test_a_file_is_never_written_over(tmp_path: Path) -> None:
    (tmp_path / "there").write_bytes(b"before")
    with pytest.raises(FileExistsError):
        FileWriter(tmp_path / "there")
    assert (tmp_path / "there").read_bytes() == b"before"
