"""PyTorch files: payloads in every container, archives that contradict themselves, tensors that claim too much."""

import io
import struct
import tarfile
import zipfile
from collections.abc import Callable
from functools import cache
from typing import Any

import torch

from tests.fuzz.inputs import BASES, Input, Source, saved, state
from tests.fuzz.pickles import harmless_bomb, payload

Entries = list[tuple[str, bytes]]


@cache
def _entries() -> tuple[tuple[str, bytes], ...]:
    with zipfile.ZipFile(io.BytesIO(BASES["pytorch"][2]())) as archive:
        return tuple((name, archive.read(name)) for name in archive.namelist())


def _archive(entries: Entries, method: int = zipfile.ZIP_STORED) -> bytes:
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w", method) as archive:
        for name, data in entries:
            archive.writestr(zipfile.ZipInfo(name, (1980, 1, 1, 0, 0, 0)), data, method)
    return out.getvalue()


def _with_pickle(data: bytes) -> bytes:
    return _archive([(name, data if name.endswith("data.pkl") else content) for name, content in _entries()])


def _payload(source: Source) -> bytes:
    evil = payload(source)
    return source.draws.choice((evil, _with_pickle(evil), _legacy(evil), _legacy(evil), _tar(evil)))


def _bomb(source: Source) -> bytes:
    evil = harmless_bomb(source)
    return source.draws.choice((evil, _with_pickle(evil), _legacy(evil)))


def _legacy(pickled: bytes) -> bytes:
    """Put a pickle where the legacy format has the state dict, after its magic number, version and system."""
    start = saved(None, _use_new_zipfile_serialization=False)
    return start[: start.rindex(b"\x80\x02N.")] + pickled + b"\x80\x02]."


def _tar(pickled: bytes) -> bytes:
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w") as archive:
        for name in ("sys_info", "pickle", "storages", "tensors"):
            entry = tarfile.TarInfo(name)
            entry.size = len(pickled)
            archive.addfile(entry, io.BytesIO(pickled))
    return out.getvalue()


def _program(source: Source) -> bytes:
    more = source.draws.choice(
        ("constants.pkl", "code/__torch__.py", ".data/extern_modules", "evil.py", "extra/x", ".data/python_version")
    )
    return _archive([*_entries(), (f"archive/{more}", payload(source))])


def _names(source: Source) -> bytes:
    entries = list(_entries())
    at = source.draws.randrange(len(entries))
    name, data = entries[at]
    trick = source.draws.choice(
        (f"../{name}", f"/{name}", f"archive/../{name}", name.replace("/", "\\"), f"other/{name}",
        name.replace("archive", "Archive"),
         "archive/data/../../x", "C:/x", f"{name}/x", "archive//data.pkl", "x" * 60_000, "archive/\x1b[2J",
         "archive/data/0\udcff")
    )  # fmt: skip
    trick = trick.encode("utf-8", "replace").decode()
    if source.draws.random() < 0.5:
        entries[at] = (trick, data)
    else:
        entries.append((trick, data))
    if entries == list(_entries()):
        entries.pop()
    return _archive(entries)


def _twice(source: Source) -> bytes:
    """Two entries of one name, which readers choose from differently."""
    data, name = _archive([*_entries(), ("archive/dbta.pkl", payload(source))]), b"archive/dbta.pkl"
    return data.replace(name, source.draws.choice((b"archive/data.pkl", b"archive/DATA.pkl")))


DIRECTORY = {"flags": 8, "method": 10, "crc": 16, "stored": 20, "size": 24, "name length": 28, "extra length": 30,
             "comment": 32, "disk": 34, "offset": 42, "name": 46}  # fmt: skip


def _directory(source: Source) -> bytes:
    """Change one field of the directory, or of the end record."""
    data = bytearray(BASES["pytorch"][2]() if source.draws.random() < 0.5 else _archive(list(_entries())))
    if source.draws.random() < 0.7:
        at = source.draws.choice(places_of(bytes(data), b"PK\1\2")) + DIRECTORY[source.draws.choice(sorted(DIRECTORY))]
    else:
        at = data.rindex(b"PK\5\6") + source.draws.choice((4, 6, 8, 10, 12, 16, 20))
    # The lowest byte, by something: dates and attributes are not among the fields.
    data[at] = (data[at] + source.draws.randrange(1, 256)) % 256
    return bytes(data)


def places_of(data: bytes, what: bytes) -> list[int]:
    found, at = [], data.find(what)
    while at >= 0:
        found.append(at)
        at = data.find(what, at + 1)
    return found


def _around(source: Source) -> bytes:
    data = BASES["pytorch"][2]()
    more = source.draws.randbytes(source.draws.randrange(1, 2000))
    end = struct.pack("<4s4H2LH", b"PK\5\6", 0, 0, 0, 0, 0, 0, 0)
    return source.draws.choice((more + data, data + more, b"PK\3\4" + data, data + end, data + data, data[:-22] + end))


def _packed(source: Source) -> bytes:
    return _archive(list(_entries()), source.draws.choice((zipfile.ZIP_DEFLATED, zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA)))


def _missing(source: Source) -> bytes:
    entries = list(_entries())
    needed = [i for i, (name, _) in enumerate(entries) if "/data/" in name or name.endswith("data.pkl")]
    at = source.draws.choice(needed)
    name, data = entries[at]
    if source.draws.random() < 0.5 or name.endswith(".pkl"):
        del entries[at]
    else:
        entries[at] = (name, data[: len(data) // 2])
    return _archive(entries)


def _claims(source: Source) -> bytes:
    """Tensors that claim more than the file holds, or that are no dense numbers."""
    tensors: dict[str, Any] = dict(state())
    name = source.draws.choice([name for name, tensor in tensors.items() if tensor.numel() > 64])
    shape = tensors[name].shape
    kind = source.draws.randrange(8)
    if kind == 0:
        tensors = {name: tensor.new_zeros(()).expand(tensor.shape) for name, tensor in tensors.items()}
    elif kind == 1:
        base = torch.zeros(2_000_000)
        tensors |= {f"aux1.{i}": base[i : i + 1_900_000] for i in range(source.draws.randrange(3, 9))}
    elif kind == 2:
        tensors |= {f"aux1.{i}": torch.zeros(1).expand(10**12) for i in range(source.draws.randrange(1, 5))}
    elif kind == 3:
        shared = torch.zeros(300_000)
        tensors |= {f"aux1.{i}": shared for i in range(100)}
    elif kind == 4:
        tensors[name] = tensors[name].to(
            source.draws.choice((torch.complex64, torch.float8_e4m3fn, torch.int8, torch.bool))
        )
    elif kind == 5:
        tensors[name] = source.draws.choice(
            (torch.eye(3).to_sparse(), torch.empty(shape, device="meta"), torch.zeros(shape, dtype=torch.uint16))
        )
    elif kind == 6:
        bad = tensors[name].clone()
        bad.view(-1)[source.draws.randrange(bad.numel())] = source.draws.choice(
            (float("nan"), float("inf"), -float("inf"))
        )
        tensors[name] = bad
    else:
        tensors[source.draws.choice(("x" * 3_000_000, "aux1.\ud800", "aux1.\x1b", "aux1." + "y" * 2000, "", "\0"))] = (
            torch.zeros(1)
        )
    return saved(tensors, _use_new_zipfile_serialization=source.draws.random() < 0.7)


def _numbers(source: Source) -> bytes:
    """Change a number in the pickle, the archive being right: sizes, strides, offsets, keys of storages."""
    pickled = bytearray(next(data for name, data in _entries() if name.endswith("data.pkl")))
    places = [at for at in range(len(pickled) - 1) if pickled[at : at + 1] in (b"K", b"M")]
    at = source.draws.choice(places)
    pickled[at + 1] = (pickled[at + 1] + source.draws.randrange(1, 256)) % 256
    return _with_pickle(bytes(pickled))


def _unlike(source: Source) -> bytes:
    return source.draws.choice(
        (b"", b"PK", b"PK\3\4", b"\x80", b"\x80\x02", b"GIF89a" + bytes(100), b"hello world " * 50, bytes(1000),
        b"\x7fELF" + bytes(200),
         b"%PDF-1.4 " + bytes(100), source.draws.randbytes(source.draws.randrange(5000)), saved([1, 2]), saved({}),
         saved({"a": 1}),
         saved(torch.zeros(3)), saved({"state_dict": {"model": {"net": {"ema": {}}}}}), saved({1: torch.zeros(1)}))
    )  # fmt: skip


KINDS: dict[str, Callable[[Source], bytes]] = {
    "payload": _payload, "bomb": _bomb, "program": _program, "names": _names, "entry twice": _twice,
    "directory": _directory,
    "bytes around": _around, "compressed": _packed, "missing content": _missing, "claims": _claims,
    "something else": _unlike,
}  # fmt: skip
WEIGHTS = {"payload": 5, "directory": 3, "names": 2, "bomb": 2, "claims": 2}


def pytorch_input(source: Source) -> Input:
    if (
        source.draws.random() < 0.1
    ):  # views of the right shape may lie elsewhere in their storage: other numbers of the file
        return Input("pytorch: numbers of the pickle", "checkpoint", _numbers(source), "numbers", "pytorch")
    name = source.draws.choices(sorted(KINDS), [WEIGHTS.get(name, 1) for name in sorted(KINDS)])[0]
    data = KINDS[name](source)
    if name == "directory":  # a bit that says how hard the packer tried changes nothing
        return Input(f"pytorch: {name}", "checkpoint", data, "nothing", "pytorch")
    return Input(f"pytorch: {name}", "checkpoint", data)
