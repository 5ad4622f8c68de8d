"""Checkpoint files made to deceive: damage is noticed, claims are counted, nothing is run, and messages stay short."""

import io
import os
import pickle
import pickletools
import random
import struct
import tarfile
import zipfile
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from wbar.errors import ContentTooLarge, CorruptFile, NotAStateDict, Rejected, UnsafePickle
from wbar.spec import Network
from wbar_averaging.quoting import quoted, reason
from wbar_averaging.zip_directory import InvalidZip, read_directory
from wbar_training.networks.architectures import initialized
from wbar_training.uploads.checkpoint_files import validate
from wbar_training.uploads.limits import UploadLimits
from wbar_training.uploads.pickle_opcodes import Opcodes, is_harmless
from wbar_training.uploads.tensor_checks import check_claims


def state() -> dict[str, torch.Tensor]:
    torch.manual_seed(0)
    return dict(initialized(Network("resnet20", 10)).state_dict())


def saved(content: object, **options: object) -> bytes:
    out = io.BytesIO()
    torch.save(content, out, **options)  # type: ignore[arg-type]
    return out.getvalue()


def rezipped(data: bytes, change: Callable[[str, bytes], list[tuple[str, bytes]]]) -> bytes:
    """Write an archive again, entry by entry."""
    out = io.BytesIO()
    with zipfile.ZipFile(io.BytesIO(data)) as old, zipfile.ZipFile(out, "w") as new:
        for entry in old.infolist():
            for name, content in change(entry.filename, old.read(entry)):
                new.writestr(name, content)
    return out.getvalue()


def read(tmp_path: Path, data: bytes, limits: UploadLimits | None = None) -> dict[str, torch.Tensor]:
    (tmp_path / "c").write_bytes(data)
    validate(tmp_path / "c", None, None, tmp_path / "out", limits)
    return load_file(tmp_path / "out")


def test_flipped_bytes_of_an_archive_are_noticed_wherever_they_matter(tmp_path: Path) -> None:
    original, draws = state(), random.Random(0)
    data = saved(original)
    refused = 0
    for _ in range(60):
        damaged = bytearray(data)
        damaged[draws.randrange(len(damaged))] ^= 1 << draws.randrange(8)
        try:
            tensors = read(tmp_path, bytes(damaged))
        except (CorruptFile, UnsafePickle):
            refused += 1
        else:  # a flip in the padding before an entry, or in a date
            assert all(torch.equal(tensors[name], tensor) for name, tensor in original.items())
    assert refused > 30


def test_an_archive_without_checksums_says_how_to_write_them(tmp_path: Path) -> None:
    data = saved(state())
    with zipfile.ZipFile(io.BytesIO(data)) as archive:
        entry = next(entry for entry in archive.infolist() if entry.filename.endswith("/data/0"))
    at = data.index(struct.pack("<L", entry.CRC), entry.header_offset)
    changed = data.replace(data[at : at + 4], b"\0\0\0\0")
    with pytest.raises(CorruptFile, match=r"data/0.*checksum.*set_crc32_options"):
        read(tmp_path, changed)


def twice(name: str, content: bytes) -> list[tuple[str, bytes]]:
    return [(name, content), (name, content)] if name.endswith("/data/0") else [(name, content)]


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        (lambda name, content: [(f"../{name}", content)], CorruptFile, "points outside"),
        (lambda name, content: [(f"/{name}", content)], CorruptFile, "points outside"),
        (lambda name, content: [(name, content), (name + ".exe/../x", b"")], CorruptFile, "points outside"),
        (lambda name, content: [(name, content), ("archive/constants.pkl", b"")], UnsafePickle, "belongs to a program"),
        (lambda name, content: [(name, content), ("archive/code/x.py", b"")], UnsafePickle, "belongs to a program"),
        (lambda name, content: [(name, content), ("archive/.data/extern_modules", b"")], UnsafePickle, "torch.package"),
        (lambda name, content: [(name, content), ("archive/notes.txt", b"")], CorruptFile, "no part of what torch.save"),
        (lambda name, content: [(name.replace("/", f"{len(name)}/", 1), content)], CorruptFile, "folders"),
        (lambda name, content: [(name.replace("data.pkl", "data/x"), content)], CorruptFile, "no data.pkl"),
    ],
)  # fmt: skip
def test_entries_that_torch_save_does_not_write(
    tmp_path: Path, change: Callable[[str, bytes], list[tuple[str, bytes]]], error: type[Rejected], message: str
) -> None:
    seen = set[str]()

    def once(name: str, content: bytes) -> list[tuple[str, bytes]]:
        made = [pair for pair in change(name, content) if pair[0] not in seen]
        seen.update(name for name, _ in made)
        return made

    with pytest.raises(error, match=message):
        read(tmp_path, rezipped(saved(state()), once))


@pytest.mark.filterwarnings("ignore:Duplicate name")
def test_an_entry_that_is_there_twice(tmp_path: Path) -> None:
    with pytest.raises(CorruptFile, match=r"data/0' is in the archive twice"):
        read(tmp_path, rezipped(saved(state()), twice))


def small_zip(folder: Path) -> tuple[Path, bytearray, int]:
    """Return the path of a zip of two stored entries, its bytes, and where its directory begins."""
    with zipfile.ZipFile(folder / "z", "w") as archive:
        archive.writestr("a/data.pkl", b"12345678")
        archive.writestr("a/version", b"abcdefgh")
    data = bytearray((folder / "z").read_bytes())
    return folder / "z", data, data.index(b"PK\1\2")


@pytest.mark.parametrize(
    ("at", "value", "message"),
    [
        (8, b"\1", "encrypted"),
        (10, b"\x08", "disagree about how it is packed"),
        (16, b"\0\0\0\0", "checksum"),
        (20, b"\xff\xff\0\0", "stored size"),
        (24, b"\x09\0\0\0", "says size 8, the zip directory 9"),
        (42, b"\5\0\0\0", "5 bytes lie before the archive's first entry"),
        (46, b"b", "is called 'a/data.pkl' in its own header"),
        (28, b"\xff\xff", "goes beyond its end"),
        (34, b"\1", "one part of several"),
        (0, b"PK\0\0", "number 1 is not there"),
    ],
)
def test_a_directory_that_contradicts_the_entries(tmp_path: Path, at: int, value: bytes, message: str) -> None:
    path, data, directory = small_zip(tmp_path)
    data[directory + at : directory + at + len(value)] = value
    path.write_bytes(data)
    with pytest.raises(InvalidZip, match=message):
        read_directory(path, 10)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda data: b"x" + data, "is said to lie"),
        (lambda data: data + b"x", "bytes follow the zip directory"),
        (lambda data: data[:-1], "missing at the end"),
        (lambda data: data[:30], "missing at the end"),
        (lambda data: data[:-14] + b"\3\0\3\0" + data[-10:], "number 3 is not there|one part"),
    ],
)
def test_bytes_around_an_archive(tmp_path: Path, change: Callable[[bytes], bytes], message: str) -> None:
    path, data, _ = small_zip(tmp_path)
    path.write_bytes(change(bytes(data)))
    with pytest.raises(InvalidZip, match=message):
        read_directory(path, 10)


def test_expanded_tensors_are_refused_and_tied_ones_are_not(tmp_path: Path) -> None:
    expanded = {name: tensor.new_zeros(()).expand(tensor.shape) for name, tensor in state().items()}
    with pytest.raises(ContentTooLarge, match=r"different tensors need \d+ bytes where \d+ are the most.*clone\(\)"):
        read(tmp_path, saved(expanded))
    base = torch.zeros(100_000)
    overlapping = {f"w{i}": base[i : i + 90_000] for i in range(8)}
    with pytest.raises(ContentTooLarge, match="overlap"):
        read(tmp_path, saved(overlapping))
    check_claims({f"layer{i}.weight": base for i in range(12)}, 400_000)  # one weight, twelve layers
    check_claims({"qkv": base, "q": base[:30_000], "k": base[30_000:60_000]}, 400_000)
    with pytest.raises(ContentTooLarge, match="all tensors need"):
        check_claims({f"layer{i}.weight": base for i in range(17)}, 400_000)
    with pytest.raises(ContentTooLarge, match="the storages have 400000 bytes where 399999"):
        check_claims({"w": base}, 399_999)


class Payload:
    """Creates a file when it is unpickled the careless way."""

    def __init__(self, marker: Path) -> None:
        self.marker = marker

    def __reduce__(self) -> tuple[object, tuple[str]]:
        return os.system, (f"touch {self.marker}",)


class Internal:
    """Calls a function of torch that no state dict needs."""

    def __reduce__(self) -> tuple[object, tuple[int]]:
        return torch.FloatTensor, (1000,)


class Nested:
    def __init__(self, inner: bytes) -> None:
        self.inner = inner

    def __reduce__(self) -> tuple[object, tuple[bytes]]:
        return pickle.loads, (self.inner,)


def memo_trick(marker: Path) -> bytes:
    """`posix.system` by STACK_GLOBAL, its name fetched from the memo after the memo was filled with something harmless."""
    return (b"\x80\x04\x8c\x0bcollections\x94\x30\x8c\x05posixq\x00\x30\x8c\x06systemq\x01\x30"
            b"h\x00h\x01\x93\x8c" + bytes([6 + len(str(marker))]) + b"touch " + str(marker).encode() + b"\x85R.")  # fmt: skip


@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
@pytest.mark.parametrize("container", ["bare", "zip", "legacy"])
def test_a_pickle_of_any_protocol_that_calls_something_is_unsafe_and_not_run(
    tmp_path: Path, protocol: int, container: str
) -> None:
    marker = tmp_path / "ran"
    evil = pickle.dumps({"w": 1, "evil": Payload(marker)}, protocol)
    if container == "bare":
        data = evil
    elif container == "zip":
        data = rezipped(
            saved({"w": torch.zeros(2)}), lambda name, old: [(name, evil if name.endswith(".pkl") else old)]
        )
    else:
        data = saved({"w": Payload(marker)}, _use_new_zipfile_serialization=False, pickle_protocol=max(2, protocol))
    with pytest.raises(UnsafePickle, match=r"system.*never done"):
        read(tmp_path, data)
    assert not marker.exists()


def test_pickles_that_scanners_miss(tmp_path: Path) -> None:
    marker = tmp_path / "ran"
    tricks = {
        "memo": memo_trick(marker),
        "nested": pickle.dumps(Nested(pickle.dumps(Payload(marker)))),
        "torch's internals": pickle.dumps(Internal(), 2),
        "broken after the payload": pickle.dumps(Payload(marker), 2)[:-1] + b"\xff",
        "cut off after the payload": pickle.dumps(Payload(marker), 2)[:-1],
        "a computed name": b"\x80\x04\x8c\x05posix\x8c\x06systemK\x01\x30\x93.",
        "an extension": b"\x80\x02]q\x00\x82\x01]].",
        "a persistent text": b"\x80\x02Pxxxxxx\n.",
        "instance": b"(S'true'\niposix\nsystem\n.",
    }
    for name, data in tricks.items():
        with pytest.raises(UnsafePickle):
            read(tmp_path, data)
        assert not marker.exists(), name
    assert pickle.loads(memo_trick(marker)) == 0
    assert marker.exists(), "the payload works when it is let"


def test_the_legacy_tar_format_is_never_unpickled(tmp_path: Path) -> None:
    with tarfile.open(tmp_path / "t", "w") as archive:
        for name in ("sys_info", "pickle", "storages", "tensors"):
            entry, content = tarfile.TarInfo(name), pickle.dumps(Payload(tmp_path / "ran"), 2)
            entry.size = len(content)
            archive.addfile(entry, io.BytesIO(content))
    with pytest.raises(UnsafePickle, match="tar archive"):
        validate(tmp_path / "t", None, None, tmp_path / "out")
    assert not (tmp_path / "ran").exists()


def test_a_harmless_pickle_of_protocol_4_is_not_called_unsafe(tmp_path: Path) -> None:
    with pytest.raises(CorruptFile, match="protocol 4"):
        read(tmp_path, saved({"w": torch.zeros(2)}, pickle_protocol=4))


def test_the_allowed_globals_are_those_that_torch_save_writes() -> None:
    content = {
        "all": [torch.zeros(1, dtype=dtype) for dtype in (torch.float16, torch.bfloat16, torch.int8, torch.bool)],
        "parameter": torch.nn.Parameter(torch.ones(1)),
        "size": torch.Size([1]), "dtype": torch.float32, "device": torch.device("cpu"), "sparse": torch.eye(2).to_sparse(),
    }  # fmt: skip
    with zipfile.ZipFile(io.BytesIO(saved(content))) as archive:
        data = archive.read("archive/data.pkl")
    assert {op.name for op, _, _ in pickletools.genops(data)} >= {"GLOBAL", "REDUCE"}
    assert Opcodes(data).refused is None
    for name in (
        "posix.system",
        "torch.load",
        "torch.FloatTensor",
        "torch.hub.load",
        "builtins.eval",
        "torch.float_power.x",
    ):
        assert not is_harmless(name), name


@pytest.mark.parametrize("kind", ["safetensors", "pytorch", "expanded", "keys"])
def test_a_name_of_three_megabytes_makes_a_short_message(tmp_path: Path, kind: str) -> None:
    name = "x" * 3_000_000
    if kind == "safetensors":
        save_file({name: torch.zeros(2)}, tmp_path / "c")
        data = (tmp_path / "c").read_bytes()
    elif kind == "pytorch":
        data = saved({name: torch.tensor([float("nan")]), name + "y": torch.zeros(2, dtype=torch.complex64)})
    elif kind == "expanded":
        data = saved(state() | {name: torch.zeros(2)})
    else:
        data = saved({name: [1]})
    (tmp_path / "c").write_bytes(data)
    with pytest.raises(Rejected) as caught:
        validate(tmp_path / "c", "resnet20", None, tmp_path / "out")
    assert len(caught.value.detail) < 2000
    assert len(repr(caught.value.details)) < 20_000


def test_a_pickle_longer_than_the_limit_and_too_many_tensors(tmp_path: Path) -> None:
    small = UploadLimits(header_bytes=1000, tensors=3)
    with pytest.raises(ContentTooLarge, match=r"\d+ entries"):
        read(tmp_path, saved({f"w{i}": torch.zeros(1) for i in range(200)}), small)
    with pytest.raises(ContentTooLarge, match=r"data.pkl has \d+ bytes, more than the limit of 1000"):
        read(tmp_path, saved(dict.fromkeys([f"w{i}" for i in range(100)], torch.zeros(1))), small)
    with pytest.raises(ContentTooLarge, match="longer than the limit of 1000"):
        read(tmp_path, saved(state(), _use_new_zipfile_serialization=False), small)
    save_file({f"w{i}": torch.zeros(1) for i in range(4)}, tmp_path / "s")
    with pytest.raises(ContentTooLarge, match="names 4 tensors"):
        read(tmp_path, (tmp_path / "s").read_bytes(), small)


def test_storages_larger_than_their_entry(tmp_path: Path) -> None:
    """The pickle claims more numbers than the entry has bytes: an older torch read beyond it (CVE-2026-24747)."""
    data = saved({"w": torch.zeros(2, dtype=torch.float64)})
    more = rezipped(data, lambda name, old: [(name, old.replace(b"K\x02", b"K\x7f") if name.endswith(".pkl") else old)])
    with pytest.raises((CorruptFile, ContentTooLarge, NotAStateDict)):
        read(tmp_path, more)


@pytest.mark.parametrize("claimed", [b"K\x08", b"K\x01"], ids=["into the next entry", "less than it has"])
def test_a_storage_that_is_not_its_entry(tmp_path: Path, claimed: bytes) -> None:
    """A mapped archive gives as many bytes as the pickle says, whatever the entry has."""
    data = saved({f"w{i}": torch.full((2,), float(i), dtype=torch.float64) for i in range(40)})
    other = rezipped(
        data, lambda name, old: [(name, old.replace(b"K\x02", claimed, 1) if name.endswith(".pkl") else old)]
    )
    with pytest.raises((CorruptFile, ContentTooLarge)):
        read(tmp_path, other)


def test_an_empty_archive(tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "z", "w"):
        pass
    assert read_directory(tmp_path / "z", 10) == []


@pytest.mark.parametrize("name", ["aux1.\ud800", "aux1.\x1b[2J", "aux1." + "x" * 1000])
def test_names_that_a_weights_file_cannot_carry(tmp_path: Path, name: str) -> None:
    """Auxiliary heads are carried along under their own names, which would be written out again."""
    with pytest.raises(NotAStateDict, match="cannot name a tensor"):
        read(tmp_path, saved(state() | {name: torch.zeros(1)}))


def test_statistics_of_integers_are_refused(tmp_path: Path) -> None:
    integers = {name: tensor.to(torch.int32) if "running" in name else tensor for name, tensor in state().items()}
    with pytest.raises(Rejected, match=r"running_mean: torch\.int32 in the checkpoint"):
        read(tmp_path, saved(integers))


def test_names_and_reasons_in_messages() -> None:
    assert quoted("a\x1b[31m\udc80") == r"'a\x1b[31m\udc80'"
    assert len(quoted("x" * 10**6)) < 110
    assert reason(ValueError("cannot identify image file <_io.BytesIO object at 0x7f00aa11bb22>")) == (
        "cannot identify image file the file"
    )
    assert reason(ValueError("")) == "ValueError"
    assert len(Rejected("x" * 10**6).detail) == 4000
