"""Archives made to deceive: cut off, contradictory, endless, with names that are two things at once."""

import gzip
import io
import resource
import shutil
import struct
import subprocess
import tarfile
import time
import unicodedata
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import zstandard

from tests.fuzz.tar_headers import HEADERS, header
from tests.training.test_dataset_files import files, png, write_tar, write_zip
from wbar.errors import ContentTooLarge, InvalidArchive, Rejected
from wbar_training.uploads.archives import archive_members
from wbar_training.uploads.dataset_archives import pack_archive, pack_folder
from wbar_training.uploads.limits import UploadLimits


def tar(content: dict[str, bytes], folder: Path) -> bytes:
    return write_tar(folder / "made.tar", content, "w").read_bytes()


PACKERS: dict[str, Callable[[bytes], bytes]] = {
    "tar": bytes,
    "tar.gz": lambda data: gzip.compress(data, mtime=0),
    "tar.zst": zstandard.ZstdCompressor(write_checksum=True).compress,
}


def refused(
    folder: Path, data: bytes, error: type[Rejected] = InvalidArchive, limits: UploadLimits | None = None
) -> str:
    (folder / "upload").write_bytes(data)
    with pytest.raises(error) as caught:
        pack_archive(folder / "upload", folder / "out", limits or UploadLimits())
    assert len(caught.value.detail) < 1000
    return caught.value.detail


@pytest.mark.parametrize("kind", sorted(PACKERS))
def test_an_archive_that_is_cut_off_anywhere_is_refused(tmp_path: Path, kind: str) -> None:
    plain = tar(files(), tmp_path)
    content = plain.rstrip(b"\0")
    whole = content + bytes(-len(content) % 512 + 1024)  # two blocks of zeros and nothing after them
    data = PACKERS[kind](whole)
    (tmp_path / "upload").write_bytes(data)
    assert pack_archive(tmp_path / "upload", tmp_path / "out", UploadLimits()).images["train"] == 12
    for cut in (1, 4, 8, 9, 511, 512, 513, 1024, 1025, len(data) // 2, len(data) - 20):
        refused(tmp_path, data[: max(1, len(data) - cut)])


def test_a_file_shorter_than_any_header_is_said_to_be_no_archive(tmp_path: Path) -> None:
    assert "29 bytes: it is no zip, tar" in refused(tmp_path, b"a note, and no archive at all")


def test_what_ends_well_inside_and_not_outside(tmp_path: Path) -> None:
    whole = tar(files(), tmp_path)
    gz, zst = PACKERS["tar.gz"](whole), PACKERS["tar.zst"](whole)
    assert "gzip" in refused(tmp_path, gz[:-8] + struct.pack("<LL", 1, len(whole)))  # the checksum
    assert "gzip" in refused(tmp_path, gz[:-4] + struct.pack("<L", 1))  # the length
    assert "gzip" in refused(tmp_path, gz + b"garbage")
    assert "zstd" in refused(tmp_path, zst[:-1] + bytes([zst[-1] ^ 1]))
    assert "zstd" in refused(tmp_path, zst + b"garbage!")
    assert "follows the end" in refused(tmp_path, whole + b"x" * 512)
    assert "follows the end" in refused(tmp_path, PACKERS["tar.gz"](whole + b"\0" * 511 + b"x"))
    assert "follows the end" in refused(tmp_path, gz + gzip.compress(b"second"))
    for data in (
        gz + gzip.compress(bytes(512)),
        zst + zstandard.compress(bytes(10)),
        whole + bytes(70_000),
        gz + bytes(9),
    ):
        (tmp_path / "upload").write_bytes(data)
        assert pack_archive(tmp_path / "upload", tmp_path / "out", UploadLimits()).images["train"] == 12


def test_a_single_block_of_zeros_is_no_end(tmp_path: Path) -> None:
    first, second = tar(files(), tmp_path).rstrip(b"\0"), tar({"train/0/z.png": png(0)}, tmp_path)
    data = first + bytes(-len(first) % 512 + 512) + second
    assert "its end is two" in refused(tmp_path, data)


@pytest.mark.parametrize(
    ("names", "message"),
    [
        (["train/0/a.png", "train/0/a.png"], "'train/0/a.png' is in the archive twice"),
        (["train/0/a.png", "train/0/A.PNG"], "twice"),
        (["train/0/a.png", "./train//0/a.png"], "twice"),
        (["train/cat/a.png", "train/Cat/b.png"], "'train/cat' and 'train/Cat' differ only in case"),
        ([f"train/{unicodedata.normalize(form, 'é')}/{form}.png" for form in ("NFC", "NFD")], "encoding of accents"),
        (["train/straße/a.png", "train/STRASSE/b.png"], "differ only in case"),
        (["train/0", "train/0/a.png"], "is a file and a folder"),
        ([f"train/0/{'x' * 256}.png"], "a part of 260 characters"),
        (["x" * 3_000_000], "a part of 3000000 characters|extended tar header has 30000"),
        (["a/" * 100 + "x.png"], "100 folders deep|101 folders"),
    ],
)
@pytest.mark.filterwarnings("ignore:Duplicate name")
def test_names_that_are_two_things_at_once(tmp_path: Path, names: list[str], message: str) -> None:
    members = [
        *((name, data) for name, data in files().items() if not name.startswith("train/0")),
        *((n, png(0)) for n in names),
    ]
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w") as archive:
        for name, data in members:
            entry = tarfile.TarInfo(name)
            entry.size = len(data)
            archive.addfile(entry, io.BytesIO(data))
    said = [refused(tmp_path, out.getvalue())]
    if max(map(len, names)) < 60_000:
        zipped = io.BytesIO()
        with zipfile.ZipFile(zipped, "w") as packed:
            for name, data in members:
                packed.writestr(name, data)
        said.append(refused(tmp_path, zipped.getvalue()))
    for text in said:
        assert any(part in text for part in message.split("|"))


@pytest.mark.parametrize("name", sorted(HEADERS))
def test_tar_headers_are_refused_before_their_content(tmp_path: Path, name: str) -> None:
    data, error, message = HEADERS[name]
    assert message in refused(tmp_path, data + bytes(1024), error)


def test_long_names_and_large_numbers_are_read(tmp_path: Path) -> None:
    content = files() | {f"train/0/{'é' * 60}{'x' * 90}.png": png(0)}
    for form in (tarfile.GNU_FORMAT, tarfile.PAX_FORMAT, tarfile.USTAR_FORMAT):
        out = io.BytesIO()
        with tarfile.open(fileobj=out, mode="w", format=form, pax_headers={"comment": "x"}) as archive:
            folder = tarfile.TarInfo("train/")
            folder.type = tarfile.DIRTYPE
            archive.addfile(folder)
            for name, data in content.items():
                short = name if form != tarfile.USTAR_FORMAT or len(name) < 90 else "train/0/" + "y" * 80 + ".png"
                entry = tarfile.TarInfo(short)
                entry.size, entry.mtime = len(data), 1.5 if form == tarfile.PAX_FORMAT else 1
                archive.addfile(entry, io.BytesIO(data))
        (tmp_path / "upload").write_bytes(out.getvalue())
        assert pack_archive(tmp_path / "upload", tmp_path / "out", UploadLimits()).images["train"] == 13


CLASSES = {
    "not UTF-8": "caf\udce9", "control": "a\x1b[2J", "line feed": "a\nb", "blank": "  ", "formula": "=1+1",
    "formula after blanks": " =1+1", "delete": "a\x7f",
}  # fmt: skip


@pytest.mark.parametrize("name", sorted(CLASSES))
def test_class_names_that_cannot_be_written_down(tmp_path: Path, name: str) -> None:
    spelled = CLASSES[name]
    content = files() | {f"train/{spelled}/{i}.png": png(i) for i in range(2)}
    data = b"".join(header(n, size=len(d)) + d + bytes(-len(d) % 512) for n, d in content.items()) + bytes(1024)
    said = refused(tmp_path, data)
    assert "cannot name a class" in said
    assert said.isascii()
    assert said.isprintable()


@pytest.mark.parametrize("name", ["a\x1b", "  ", "=1+1", "x" * 256])
def test_label_tables_have_the_same_classes(tmp_path: Path, name: str) -> None:
    table = f'image,cat,"{name}"\ntrain/1.png,1,0\ntrain/2.png,0,1\n'.encode()
    data = tar({"train/1.png": png(0), "train/2.png": png(1), "labels.csv": table}, tmp_path)
    (tmp_path / "upload").write_bytes(data)
    with pytest.raises(InvalidArchive, match=r"labels.csv: the column or label .* cannot name a class"):
        pack_archive(tmp_path / "upload", tmp_path / "out", UploadLimits(), multilabel=True)


def test_a_label_table_larger_than_its_limit(tmp_path: Path) -> None:
    data = tar({"train/1.png": png(0), "labels.csv": b"image,a,b\n" + b"\n" * 10_000}, tmp_path)
    (tmp_path / "upload").write_bytes(data)
    with pytest.raises(ContentTooLarge, match=r"labels.csv has 10010 bytes, more than the limit of 1000"):
        pack_archive(tmp_path / "upload", tmp_path / "out", UploadLimits(header_bytes=1000), multilabel=True)


def read_names(path: Path, limits: UploadLimits) -> Iterator[str]:
    return (name for name, _ in archive_members(path, limits, lambda name: name.endswith(".png")))


@pytest.mark.parametrize("kind", ["zip", "tar"])
def test_files_that_are_no_images_are_counted_and_not_read(tmp_path: Path, kind: str) -> None:
    """The others hold what cannot be unpacked: a damaged deflate stream, an archive in the archive."""
    inner = write_zip(tmp_path / "inner.zip", files()).read_bytes()
    content = files() | {"train/0/more.zip": inner, "notes/more.tar": inner}
    if kind == "zip":
        path = write_zip(tmp_path / "a.zip", content)
        with zipfile.ZipFile(path, "a", zipfile.ZIP_DEFLATED) as archive:
            archive.writestr("train/0/notes.txt", b"x" * 1000)
        data = bytearray(path.read_bytes())
        at = data.index(b"train/0/notes.txt") + len("train/0/notes.txt")
        data[at : at + 4] = b"\xff\xff\xff\xff"
        path.write_bytes(data)
    else:
        path = write_tar(tmp_path / "a.tar", content, "w")
    assert len(list(read_names(path, UploadLimits()))) == len(files())
    with pytest.raises(ContentTooLarge, match=r"more.* than the limit of 18"):
        list(read_names(path, UploadLimits(files=len(files()))))
    most = sum(map(len, files().values())) + len(inner)
    with pytest.raises(ContentTooLarge, match="limit"):
        list(read_names(path, UploadLimits(bytes=most)))


def test_a_damaged_image_of_a_zip_is_named(tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "a", "w", zipfile.ZIP_DEFLATED) as archive:
        for name, data in files().items():
            archive.writestr(name, data)
    data = bytearray((tmp_path / "a").read_bytes())
    name = next(iter(files())).encode()
    for change in (0, 20):
        changed = bytearray(data)
        changed[data.index(name) + len(name) + change] ^= 0x40
        assert repr(name.decode()) in refused(tmp_path, bytes(changed))
    packed = io.BytesIO()
    with zipfile.ZipFile(packed, "w", zipfile.ZIP_BZIP2) as archive:
        archive.writestr("train/0/a.png", png(0))
    assert "packed by method 12" in refused(tmp_path, packed.getvalue())


def test_a_hundred_thousand_tiny_files_reach_the_limit_quickly_and_without_memory(tmp_path: Path) -> None:
    """A million take ten times as long; the count is refused at the header, whatever follows."""
    block = header("x")
    with gzip.open(tmp_path / "many.tar.gz", "wb", compresslevel=1) as stream:
        blanked = sum(block[:148] + b" " * 8 + block[156:]) - ord("x")
        for number in range(100_000):
            name = b"%07d" % number
            fields = bytearray(block)
            fields[:7] = name
            fields[148:156] = f"{blanked + sum(name):06o}\0 ".encode()
            stream.write(fields)
        stream.write(bytes(1024))
    before, begun = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss, time.process_time()
    assert list(read_names(tmp_path / "many.tar.gz", UploadLimits())) == []
    with pytest.raises(ContentTooLarge, match="more files and folders than the limit of 50000"):
        list(read_names(tmp_path / "many.tar.gz", UploadLimits(files=50_000)))
    assert time.process_time() - begun < 30
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 100 * 1024  # KiB


def test_endless_zeros_after_the_end_are_counted(tmp_path: Path) -> None:
    bomb = gzip.compress(tar(files(), tmp_path) + bytes(20_000_000))
    assert "limit of 1000000 bytes" in refused(tmp_path, bomb, ContentTooLarge, UploadLimits(bytes=1_000_000))


def test_zip_entries_that_share_their_bytes(tmp_path: Path) -> None:
    """The bomb of David Fifield: many entries of the directory, one packed block."""
    path = write_zip(tmp_path / "a", {"train/0/a.png": b"x" * 1000, "train/0/b.png": b"y" * 1000})
    data = bytearray(path.read_bytes())
    second = data.rindex(b"PK\1\2")
    data[second + 42 : second + 46] = bytes(4)
    assert "entries overlap" in refused(tmp_path, bytes(data))


def test_folders_have_the_same_rules(tmp_path: Path) -> None:
    for name in ("train/cat/a.png", "train/Cat/b.png"):
        (tmp_path / "set" / name).parent.mkdir(parents=True)
        (tmp_path / "set" / name).write_bytes(png(0))
    with pytest.raises(InvalidArchive, match="differ only in case"):
        pack_folder(tmp_path / "set", tmp_path / "out", UploadLimits())


class _Pipe(io.RawIOBase):
    """Takes bytes and cannot go back, so that sizes follow the content in data descriptors."""

    def __init__(self) -> None:
        self.data = bytearray()

    def writable(self) -> bool:
        return True

    def write(self, data: bytes) -> int:  # type: ignore[override]
        self.data += data
        return len(data)


@pytest.mark.parametrize("method", [zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED])
@pytest.mark.parametrize("wide", [False, True], ids=["32 bits", "64 bits"])
@pytest.mark.parametrize("streamed", [False, True], ids=["file", "stream"])
def test_zips_of_every_honest_writer_are_read(tmp_path: Path, method: int, wide: bool, streamed: bool) -> None:
    out = _Pipe() if streamed else io.BytesIO()
    with zipfile.ZipFile(out, "w", method) as archive:  # type: ignore[call-overload]
        archive.comment = b"made by hand"
        if not streamed:
            archive.mkdir("train")
        for name, data in files().items():
            info = zipfile.ZipInfo(name)
            info.compress_type = method
            with archive.open(info, "w", force_zip64=wide) as member:
                member.write(data)
    (tmp_path / "upload").write_bytes(bytes(out.data) if isinstance(out, _Pipe) else out.getvalue())
    assert pack_archive(tmp_path / "upload", tmp_path / "out", UploadLimits()).images == {"train": 12, "val": 6}


@pytest.mark.parametrize("form", ["gnu", "oldgnu", "pax", "posix", "ustar", "v7"])
def test_archives_of_gnu_tar_are_read(tmp_path: Path, form: str) -> None:
    tar_program = shutil.which("tar")
    if tar_program is None or b"GNU" not in subprocess.run([tar_program, "--version"], capture_output=True).stdout:
        pytest.skip("GNU tar is not here")
    for name, data in files().items():
        (tmp_path / "set" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "set" / name).write_bytes(data)
    for options in ([], ["-z"]):
        packed = tmp_path / "upload"
        subprocess.run(
            [tar_program, f"--format={form}", *options, "-cf", packed, "-C", tmp_path / "set", "."], check=True
        )
        assert pack_archive(packed, tmp_path / "out", UploadLimits()).images == {"train": 12, "val": 6}
