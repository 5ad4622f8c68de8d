"""A checkpoint as bytes to be read piece by piece, wherever they lie: one safetensors file, a sharded one, a PyTorch file.

What is kept per tensor and checkpoint is a few numbers, so that a thousand checkpoints can be open at once. Files are read
and not mapped: mapped pages count as the reader's memory.
"""

import os
import sys
from array import array
from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass
from io import FileIO
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from wbar_averaging.pytorch_file import UnreadableCheckpoint, is_mapped, is_pytorch, load_state_dict
from wbar_averaging.safetensors_file import (
    MAX_HEADER,
    InvalidSafetensors,
    parse_object,
    read_layout,
    torch_dtypes,
    write_safetensors,
)

if TYPE_CHECKING:
    from torch import Tensor

INDEX = ".safetensors.index.json"
OPEN_FILES = 100  # some systems allow a process 256


@dataclass(frozen=True)
class Entry:
    """One tensor: dtype by the format's name (F32, BF16, I64 …), and where it begins in which of the checkpoint's files."""

    dtype: str
    shape: tuple[int, ...]
    file: int = 0
    offset: int = 0


class Checkpoint(Protocol):
    """An opened checkpoint. `keep` comes before the first `read`."""

    label: str
    metadata: dict[str, str]
    entries: dict[str, Entry]
    dtypes: list[str]

    def keep(self, names: Sequence[str]) -> None:
        """Number the tensors as in `names`, and forget what reading them does not need."""

    def read(self, index: int, begin: int, buffer: memoryview) -> None:
        """Fill `buffer` from byte `begin` of tensor number `index` on. Raises UnreadableCheckpoint if the file ends."""


class OpenFiles:
    """Files open for reading, the least recently used closed when there are too many. A context manager."""

    def __init__(self) -> None:
        self._files: OrderedDict[Path, FileIO] = OrderedDict()

    def get(self, path: Path) -> FileIO:
        file = self._files.get(path)
        if file is None:
            if len(self._files) >= OPEN_FILES:
                self._files.popitem(last=False)[1].close()
            file = self._files[path] = FileIO(path)
        self._files.move_to_end(path)
        return file

    def __enter__(self) -> "OpenFiles":
        return self

    def __exit__(self, *_: object) -> None:
        while self._files:
            self._files.popitem()[1].close()


class SafetensorsCheckpoint:
    """One safetensors file or the shards of one."""

    def __init__(self, label: str, paths: list[Path], files: OpenFiles) -> None:
        self.label, self.metadata, self.entries = label, dict[str, str](), dict[str, Entry]()
        self.dtypes: list[str] = []
        self._paths, self._open = paths, files
        for number, path in enumerate(paths):
            try:
                header, start = read_layout(path)
            except InvalidSafetensors as error:
                raise InvalidSafetensors(f"{path}: {error}") from None
            self.metadata = header.pop("__metadata__", {}) | self.metadata
            for name, entry in header.items():
                if name in self.entries:
                    raise UnreadableCheckpoint(
                        f"{label}: {name} is in both {paths[self.entries[name].file]} and {path}"
                    )
                dtype, offset = sys.intern(entry["dtype"]), start + entry["data_offsets"][0]
                self.entries[name] = Entry(dtype, tuple(entry["shape"]), number, offset)

    def keep(self, names: Sequence[str]) -> None:
        self.dtypes = [self.entries[name].dtype for name in names]
        self._file = array("L", (self.entries[name].file for name in names))
        self._offset = array("Q", (self.entries[name].offset for name in names))
        self.entries = {}

    def read(self, index: int, begin: int, buffer: memoryview) -> None:
        path = self._paths[self._file[index]]
        file = self._open.get(path)
        file.seek(self._offset[index] + begin)
        while len(buffer):
            count = file.readinto(buffer)
            if not count:
                raise UnreadableCheckpoint(f"{path}: ends early: was it changed while it was read?")
            buffer = buffer[count:]


class PyTorchCheckpoint:
    """A PyTorch file whose tensors are mapped. At most one tensor at a time is copied, if it does not lie in one piece."""

    def __init__(self, label: str, tensors: "dict[str, Tensor]") -> None:
        self.label, self.metadata = label, {"format": "pt"}
        self.entries = {name: Entry(_code(label, name, t), tuple(t.shape)) for name, t in tensors.items()}
        self.dtypes: list[str] = []
        self._by_name, self._tensors = tensors, list["Tensor"]()
        self._at, self._bytes = -1, memoryview(b"")

    def keep(self, names: Sequence[str]) -> None:
        self.dtypes = [self.entries[name].dtype for name in names]
        self._tensors = [self._by_name[name] for name in names]
        self.entries, self._by_name = {}, {}

    def read(self, index: int, begin: int, buffer: memoryview) -> None:
        import torch

        if index != self._at:
            flat = self._tensors[index].contiguous().view(-1)
            self._bytes, self._at = flat.view(torch.uint8).numpy().data, index
        buffer[:] = self._bytes[begin : begin + len(buffer)]


def _code(label: str, name: str, tensor: "Tensor") -> str:
    code = torch_dtypes().get(tensor.dtype)
    if code is None:
        raise UnreadableCheckpoint(f"{label}: {name} is {tensor.dtype}, which cannot be written to a safetensors file")
    return code


def open_checkpoint(path: str | os.PathLike[str], files: OpenFiles, scratch: Path) -> Checkpoint:
    """The checkpoint at `path`: a file, an index of shards, or a folder that holds one of them.

    scratch: a folder of the caller's. A PyTorch file that cannot be mapped (from before 1.6) is copied into it, so that
    no more than one of them is in memory at a time.

    Raises UnreadableCheckpoint, InvalidSafetensors or OSError.
    """
    label, path = str(path), Path(path)
    if path.is_dir():
        path = _only_one(path)
    if not path.is_file():  # neither is a pipe, which would be waited for
        raise UnreadableCheckpoint(f"{path}: there is no such file")
    if path.name.endswith(".index.json"):
        return _sharded(label, path, files)
    with open(path, "rb") as file:
        head = file.read(9)
    if path.suffix == ".safetensors" or (head[8:] == b"{" and not head.startswith(b"PK")):
        return SafetensorsCheckpoint(label, [path], files)
    if not is_pytorch(head):
        raise UnreadableCheckpoint(
            f"{path}: begins with {head[:8].hex(' ') or 'nothing'}: no safetensors or PyTorch file"
        )
    tensors = load_state_dict(path)
    checkpoint = PyTorchCheckpoint(label, tensors)
    if is_mapped(path):
        return checkpoint
    copy = scratch / f"{len(list(scratch.iterdir()))}.safetensors"
    write_safetensors(copy, tensors, checkpoint.metadata)
    return SafetensorsCheckpoint(label, [copy], files)


def _only_one(folder: Path) -> Path:
    for pattern in (f"*{INDEX}", "*.safetensors"):
        found = sorted(folder.glob(pattern))
        if len(found) == 1:
            return found[0]
        if found:
            names = ", ".join(path.name for path in found[:5])
            raise UnreadableCheckpoint(f"{folder}: holds {len(found)} files {pattern}: name one ({names})")
    raise UnreadableCheckpoint(f"{folder}: the folder holds no *{INDEX} and no *.safetensors")


def _sharded(label: str, index: Path, files: OpenFiles) -> SafetensorsCheckpoint:
    """The shards that an index names, which must hold just the tensors that it says."""
    homes = _weight_map(index)
    paths = [index.with_name(name) for name in sorted(set(homes.values()))]
    for path in paths:
        if not path.is_file():
            raise UnreadableCheckpoint(f"{index}: names {path.name}, which is missing")
    checkpoint = SafetensorsCheckpoint(label, paths, files)
    found = {name: paths[entry.file].name for name, entry in checkpoint.entries.items()}
    wrong = sorted(name for name in found.keys() | homes.keys() if found.get(name) != homes.get(name))
    if wrong:
        listed = "; ".join(
            f"{n}: in {homes.get(n, 'none')} by the index, in {found.get(n, 'none')} in fact" for n in wrong[:5]
        )
        raise UnreadableCheckpoint(f"{index}: {len(wrong)} tensors lie elsewhere: {listed}")
    return checkpoint


def _weight_map(index: Path) -> dict[str, Any]:
    if index.stat().st_size > MAX_HEADER:
        raise UnreadableCheckpoint(f"{index}: larger than the limit of {MAX_HEADER} bytes")
    try:
        found = parse_object(index.read_bytes(), "the index")
    except InvalidSafetensors as error:
        raise UnreadableCheckpoint(f"{index}: {error}") from None
    homes = found.get("weight_map")
    if not isinstance(homes, dict) or not all(isinstance(home, str) for home in homes.values()):
        raise UnreadableCheckpoint(f"{index}: weight_map is no object of names mapped to file names")
    for name in set(homes.values()):
        if name in ("", ".", "..") or any(sign in name for sign in "/\\:\0"):
            raise UnreadableCheckpoint(f"{index}: {name[:100]!r} is not the name of a file in the index's own folder")
    return homes
