"""Members of archives come piece by piece: whole, compared with what the archive says, and never in memory at once."""

import random
import struct
import tarfile
import tracemalloc
import zipfile
import zlib
from collections.abc import Callable
from io import BytesIO
from pathlib import Path

import pytest
import zstandard

from wbar.errors import CorruptFile, InvalidArchive
from wbar_training.uploads.archives import archive_members, streamed_members
from wbar_training.uploads.limits import UploadLimits
from wbar_training.uploads.members import PIECE
from wbar_training.uploads.model_folders import unpack

Files = dict[str, bytes]


def zipped(method: int) -> Callable[[Files], bytes]:
    def write(files: Files) -> bytes:
        with zipfile.ZipFile(out := BytesIO(), "w", method) as archive:
            for name, content in files.items():
                archive.writestr(name, content)
        return out.getvalue()

    return write


def tarred(kind: str) -> Callable[[Files], bytes]:
    def write(files: Files) -> bytes:
        with tarfile.open(fileobj=(out := BytesIO()), mode="w") as archive:
            for name, content in files.items():
                (info := tarfile.TarInfo(name)).size = len(content)
                archive.addfile(info, BytesIO(content))
        packed = {"tar": bytes, "gz": lambda raw: zlib.compress(raw, wbits=31), "zst": zstandard.compress}[kind]
        return bytes(packed(out.getvalue()))

    return write


FORMATS = {
    "stored": zipped(zipfile.ZIP_STORED), "deflated": zipped(zipfile.ZIP_DEFLATED),
    "tar": tarred("tar"), "tar.gz": tarred("gz"), "tar.zst": tarred("zst"),
}  # fmt: skip


@pytest.fixture(params=FORMATS)
def write(request: pytest.FixtureRequest) -> Callable[[Files], bytes]:
    return FORMATS[request.param]


@pytest.mark.parametrize("size", [0, 1, PIECE - 1, PIECE, PIECE + 1, 3 * PIECE, 5 * PIECE + 7])
@pytest.mark.parametrize("content", [b"\0", bytes(range(256)) * 3 + b"\1"], ids=["zeros", "words"])
def test_pieces_are_the_content(tmp_path: Path, write: Callable[[Files], bytes], size: int, content: bytes) -> None:
    files = {"a": (content * (size // len(content) + 1))[:size], "b": b"the next"}
    (path := tmp_path / "upload").write_bytes(write(files))
    members = streamed_members(path, UploadLimits(), lambda name: True)
    assert {one.name: (one.size, b"".join(one.pieces)) for one in members} == {
        name: (len(content), content) for name, content in files.items()
    }


def test_what_is_not_read_of_a_member_is_passed_over(tmp_path: Path, write: Callable[[Files], bytes]) -> None:
    (path := tmp_path / "upload").write_bytes(write({"a": bytes(2 * PIECE + 5), "b": b"the next"}))
    found = {}
    for member in streamed_members(path, UploadLimits(), lambda name: True):
        found[member.name] = next(member.pieces)
    assert found == {"a": bytes(PIECE), "b": b"the next"}


def test_weights_are_unpacked_without_holding_them(tmp_path: Path, write: Callable[[Files], bytes]) -> None:
    weights = random.Random(0).randbytes(24 * PIECE)
    (path := tmp_path / "upload").write_bytes(write({"model.safetensors": weights, "config.json": b"{}"}))
    tracemalloc.start()
    folder = unpack(path, _head(path), tmp_path / "w", UploadLimits())
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert folder is not None
    assert folder.weights["model.safetensors"].read_bytes() == weights
    assert peak < 10 * PIECE, f"{peak} bytes for weights of {len(weights)}"


def _head(path: Path) -> bytes:
    with open(path, "rb") as file:
        return file.read(512)


@pytest.mark.parametrize(
    ("packed", "why"),
    [
        (lambda data: deflate(data)[:-2], r"within them its content is cut off"),
        (lambda data: deflate(data) + b"hidden", r"within them something follows its content"),
        (lambda data: deflate(data) + bytes(2 * PIECE), r"within them something follows its content"),
        (lambda data: deflate(data + b"more"), r"claims 2000000 bytes, and holds more"),
        (lambda data: deflate(data[:-1]), r"claims 2000000 bytes .* holds 1999999"),
        (lambda data: deflate(b"!" + data[1:]), r"claims 2000000 bytes with the checksum"),
        (lambda data: b"\xff" * 100, r"cannot be unpacked"),
    ],
    ids=["cut off", "followed", "followed by much", "longer", "shorter", "other bytes", "damaged"],
)  # fmt: skip
def test_a_deflated_member_is_what_the_archive_says(tmp_path: Path, packed: Callable[[bytes], bytes], why: str) -> None:
    data = bytes(range(250)) * 8000
    body = packed(data)
    fields = (zlib.crc32(data), len(body), len(data), 1, 0)
    local = struct.pack("<4s5H3L2H", b"PK\3\4", 20, 0, 8, 0, 33, *fields) + b"a"
    central = struct.pack("<4s6H3L5H2L", b"PK\1\2", 20, 20, 0, 8, 0, 33, *fields, 0, 0, 0, 0, 0) + b"a"
    end = struct.pack("<4s4H2LH", b"PK\5\6", 0, 0, 1, 1, len(central), len(local) + len(body), 0)
    (path := tmp_path / "upload").write_bytes(local + body + central + end)
    with pytest.raises(InvalidArchive, match=why):
        list(archive_members(path, UploadLimits(), lambda name: True))


def deflate(data: bytes) -> bytes:
    packer = zlib.compressobj(wbits=-zlib.MAX_WBITS)
    return packer.compress(data) + packer.flush()


@pytest.mark.parametrize("form", ["tar", "tar.gz", "tar.zst"])
def test_members_of_a_stream_are_read_before_the_next_one(tmp_path: Path, form: str) -> None:
    (path := tmp_path / "upload").write_bytes(FORMATS[form]({"a": b"A" * 3000, "b": b"B" * 3000}))
    members = streamed_members(path, UploadLimits(), lambda name: True)
    first, second = next(members), next(members)
    with pytest.raises(RuntimeError, match=r"'a' is read after the next member was asked for"):
        next(first.pieces)
    assert b"".join(second.pieces) == b"B" * 3000


@pytest.mark.parametrize("first", ["config.json", "model.safetensors"])
def test_a_folder_that_is_cut_off_is_none_of_something_else(tmp_path: Path, first: str) -> None:
    names = sorted(("config.json", "model.safetensors"), key=lambda name: name != first)
    files = {name: random.Random(0).randbytes(5000) for name in names}
    (path := tmp_path / "upload").write_bytes(FORMATS["tar"](files)[:900])
    with pytest.raises(CorruptFile, match=rf"cannot be read: '{first}' is cut off: 388 of 5000"):
        unpack(path, _head(path), tmp_path / "w", UploadLimits())
    assert [one.name for one in tmp_path.iterdir()] == ["upload"]
