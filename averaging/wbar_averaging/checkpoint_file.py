"""A checkpoint as bytes to be read piece by piece, wherever they lie: safetensors or PyTorch, in one file or in shards.

What is kept per tensor and checkpoint is a few numbers, so that a thousand checkpoints can be open at once. Files are read
and not mapped: mapped pages count as the reader's memory.
"""

import os
import re
import sys
from array import array
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from io import FileIO
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from wbar_averaging.pytorch_file import UnreadableCheckpoint, is_mapped, is_pytorch, load_state_dict
from wbar_averaging.quoting import shown
from wbar_averaging.replacing import INDEX
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

PYTORCH_INDEX = ".bin.index.json"
# A trainer's files beside the weights.
NO_WEIGHTS = re.compile(r"(training_args|optimizer|scheduler|sampler|scaler)(_\d+)?\.(bin|pt|safetensors)")
_SHARD = re.compile(r"-\d{5}-of-\d{5}$")
OPEN_FILES = 100  # some systems allow a process 256


@dataclass(frozen=True)
class Entry:
    """One tensor: dtype by the format's name (F32, BF16, I64 …), and where it begins in which of the checkpoint's files."""

    dtype: str
    shape: tuple[int, ...]
    file: int = 0
    offset: int = 0


class Checkpoint(Protocol):
    """An opened checkpoint. `keep` must be called before the first `read`.

    tied: by number, for a tensor that has the memory of another one, that one's number. Of PyTorch files: the format of others
    has no such tensors.
    """

    label: str
    metadata: dict[str, str]
    entries: dict[str, Entry]
    dtypes: list[str]
    tied: dict[int, int]

    def keep(self, names: Sequence[str]) -> None:
        """Number the tensors as in `names`, and forget what reading them does not need."""

    def read(self, index: int, begin: int, buffer: memoryview) -> None:
        """Fill `buffer` from byte `begin` of tensor number `index` on. Raises UnreadableCheckpoint if the file ends."""


class OpenFiles:
    """Files open for reading, the least recently used closed when there are too many. A context manager."""

    def __init__(self) -> None:
        self._files: OrderedDict[Path, FileIO] = OrderedDict()

    def get(self, path: Path) -> FileIO:
        """Return the file, opened for reading bytes; it stays open until OPEN_FILES others were asked for."""
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
    """A checkpoint in one safetensors file or in several shards."""

    def __init__(self, label: str, paths: list[Path], files: OpenFiles, tied: Mapping[str, str] | None = None) -> None:
        self.label, self.metadata, self.entries = label, dict[str, str](), dict[str, Entry]()
        self.dtypes: list[str] = []
        self.tied: dict[int, int] = {}
        self._paths, self._open, self._tied = paths, files, tied or {}
        for number, path in enumerate(paths):
            try:
                header, start = read_layout(path)
            except InvalidSafetensors as error:
                raise InvalidSafetensors(f"{path}: {error}") from None
            self.metadata = header.pop("__metadata__", {}) | self.metadata
            for name, entry in header.items():
                _refuse_twice(label, name, self.entries, paths, path)
                dtype, offset = sys.intern(entry["dtype"]), start + entry["data_offsets"][0]
                self.entries[name] = Entry(dtype, tuple(entry["shape"]), number, offset)

    def keep(self, names: Sequence[str]) -> None:
        self.dtypes = [self.entries[name].dtype for name in names]
        self._file = array("L", (self.entries[name].file for name in names))
        self._offset = array("Q", (self.entries[name].offset for name in names))
        self.tied = _numbered(self._tied, names)
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
    """A checkpoint in PyTorch files whose tensors are mapped.

    At most one tensor at a time is copied, if it does not lie in one piece.
    """

    def __init__(self, label: str, paths: list[Path], shards: "Sequence[dict[str, Tensor]]") -> None:
        self.label, self.metadata, self.entries = label, {"format": "pt"}, dict[str, Entry]()
        self.dtypes: list[str] = []
        self.tied: dict[int, int] = {}
        self._by_name, self._tensors = dict[str, "Tensor"](), list["Tensor"]()
        self._at, self._bytes = -1, memoryview(b"")
        for number, (path, tensors) in enumerate(zip(paths, shards, strict=True)):
            for name, tensor in tensors.items():
                _refuse_twice(label, name, self.entries, paths, path)
                self.entries[name] = Entry(_code(label, name, tensor), tuple(tensor.shape), number)
                self._by_name[name] = tensor

    def keep(self, names: Sequence[str]) -> None:
        self.dtypes = [self.entries[name].dtype for name in names]
        self._tensors = [self._by_name[name] for name in names]
        self.entries, self._by_name = {}, {}
        self.tied = _numbered(_tied(dict(zip(names, self._tensors, strict=True))), names)

    def read(self, index: int, begin: int, buffer: memoryview) -> None:
        import torch

        if index != self._at:
            flat = self._tensors[index].contiguous().view(-1)
            self._bytes, self._at = flat.view(torch.uint8).numpy().data, index
        buffer[:] = self._bytes[begin : begin + len(buffer)]


def _tied(tensors: "Mapping[str, Tensor]") -> dict[str, str]:
    """Return, for each tensor that has the memory of one before it, that one's name."""
    places, found = dict[tuple[Any, ...], str](), dict[str, str]()
    for name, tensor in tensors.items():
        first = places.setdefault((tensor.data_ptr(), tensor.dtype, tensor.shape, tensor.stride()), name)
        if first != name and tensor.numel():
            found[name] = first
    return found


def _numbered(tied: Mapping[str, str], names: Sequence[str]) -> dict[int, int]:
    if not tied:
        return {}
    numbers = {name: number for number, name in enumerate(names)}
    return {numbers[name]: numbers[first] for name, first in tied.items()}


def _refuse_twice(label: str, name: str, entries: dict[str, Entry], paths: list[Path], path: Path) -> None:
    if name in entries:
        raise UnreadableCheckpoint(f"{label}: {shown(name)} is in both {paths[entries[name].file]} and {path}")


def _code(label: str, name: str, tensor: "Tensor") -> str:
    """The format's name of a tensor's dtype. Raises UnreadableCheckpoint where there is none."""
    code = torch_dtypes().get(tensor.dtype)
    if code is None:
        raise UnreadableCheckpoint(f"{label}: {shown(name)} is {tensor.dtype}, which is not read from a PyTorch file")
    return code


def open_checkpoint(path: str | os.PathLike[str], files: OpenFiles, scratch: Path) -> Checkpoint:
    """Open the checkpoint at `path`: a file, an index of shards, or a folder that holds one of them.

    A folder with safetensors is read as those, whatever PyTorch files lie beside them.

    scratch: a folder of the caller's. A PyTorch file that cannot be mapped (from before 1.6) is copied into it, so that
    no more than one of them is in memory at a time.

    Raises UnreadableCheckpoint, InvalidSafetensors or OSError.
    """
    label, path = str(path), Path(path)
    if path.is_dir():
        path = _only_one(path)
    _refuse_missing(path)
    if path.name.endswith(".index.json"):
        return _sharded(label, path, files, scratch)
    return _opened(label, [path], files, scratch)


def _refuse_missing(path: Path) -> None:
    if not path.is_file():  # neither is a pipe, which would be waited for
        raise UnreadableCheckpoint(f"{path}: there is no such file")


def _opened(
    label: str, paths: list[Path], files: OpenFiles, scratch: Path
) -> SafetensorsCheckpoint | PyTorchCheckpoint:
    """One checkpoint in one file or several, which must be of one format."""
    formats = {path: _is_safetensors(path) for path in paths}
    if all(formats.values()):
        return SafetensorsCheckpoint(label, paths, files)
    if any(formats.values()):
        one, other = (next(path for path, kind in formats.items() if kind is wanted) for wanted in (True, False))
        raise UnreadableCheckpoint(f"{label}: {one.name} is a safetensors file and {other.name} a PyTorch file")
    if all(map(is_mapped, paths)):
        return PyTorchCheckpoint(label, paths, [load_state_dict(path) for path in paths])
    tied = dict[str, str]()
    return SafetensorsCheckpoint(label, [_copied(path, scratch, tied) for path in paths], files, tied)


def _is_safetensors(path: Path) -> bool:
    """Whether it is a safetensors file. Raises UnreadableCheckpoint if it is no PyTorch file either."""
    with open(path, "rb") as file:
        head = file.read(9)
    if path.suffix == ".safetensors" or (head[8:] == b"{" and not head.startswith(b"PK")):
        return True
    if not is_pytorch(head):
        raise UnreadableCheckpoint(
            f"{path}: begins with {head[:8].hex(' ') or 'nothing'}: no safetensors or PyTorch file"
        )
    return False


def _copied(path: Path, scratch: Path, tied: dict[str, str]) -> Path:
    """A PyTorch file's tensors as a safetensors file in `scratch`; the tied ones are added to `tied`."""
    tensors = load_state_dict(path)
    tied.update(_tied(tensors))
    for name, tensor in tensors.items():
        _code(str(path), name, tensor)
    copy = scratch / f"{len(list(scratch.iterdir()))}.safetensors"
    write_safetensors(copy, tensors, {"format": "pt"})
    return copy


def _only_one(folder: Path) -> Path:
    """The file or index in a folder that stands for its one checkpoint."""
    candidates = _candidates(folder, INDEX, ".safetensors") or _candidates(folder, PYTORCH_INDEX, ".bin")
    if len(candidates) == 1:
        return candidates[0]
    if candidates:
        listed = ", ".join(path.name for path in candidates[:5])
        raise UnreadableCheckpoint(
            f"{folder}: holds {len(candidates)} checkpoints: name the one that is meant ({listed})"
        )
    raise UnreadableCheckpoint(f"{folder}: the folder holds no *{INDEX}, *.safetensors, *{PYTORCH_INDEX} or *.bin")


def _candidates(folder: Path, index_suffix: str, suffix: str) -> list[Path]:
    """Indexes, and files that are no shard of the index: an old single file beside new shards is a second checkpoint."""
    indexes = sorted(folder.glob(f"*{index_suffix}"))
    if len(indexes) > 1:
        return indexes
    shards = set(_weight_map(indexes[0]).values()) if indexes else set()
    if any(not (folder / name).is_file() for name in shards):
        return indexes  # it is read as that, and says what is missing
    found = sorted(path for path in folder.glob(f"*{suffix}") if not NO_WEIGHTS.fullmatch(path.name))
    beside = [path for path in found if path.name not in shards]
    forgotten = next((path for path in beside if indexes and _SHARD.search(path.stem)), None)
    if forgotten is not None:
        raise UnreadableCheckpoint(f"{indexes[0]}: does not name {forgotten.name}, a shard that lies beside it")
    return [*indexes, *beside]


def _sharded(label: str, index: Path, files: OpenFiles, scratch: Path) -> SafetensorsCheckpoint | PyTorchCheckpoint:
    """The shards that an index names, which must hold just the tensors that it says."""
    stated = _weight_map(index)
    paths = [index.with_name(name) for name in sorted(set(stated.values()))]
    for path in paths:
        if not path.is_file():
            raise UnreadableCheckpoint(f"{index}: names {path.name}, which is missing")
        refuse_outside(index.parent, path)
    checkpoint = _opened(label, paths, files, scratch)
    actual = {name: paths[entry.file].name for name, entry in checkpoint.entries.items()}
    wrong = sorted(name for name in actual.keys() | stated.keys() if actual.get(name) != stated.get(name))
    if wrong:
        listed = "; ".join(
            f"{n}: in {stated.get(n, 'none')} by the index, in {actual.get(n, 'none')} in fact" for n in wrong[:5]
        )
        raise UnreadableCheckpoint(f"{index}: {len(wrong)} tensors lie elsewhere: {listed}")
    return checkpoint


def refuse_outside(folder: Path, path: Path) -> None:
    """Raise UnreadableCheckpoint for a link out of its folder; those of Hugging Face's cache lead to the blobs beside it."""
    inside, target = folder.resolve(), path.resolve()
    blobs = inside.parent.parent / "blobs" if inside.parent.name == "snapshots" else inside
    if not target.is_relative_to(inside) and not target.is_relative_to(blobs):
        raise UnreadableCheckpoint(f"{folder}: {path.name} is a link to {target}, outside the folder")


def _weight_map(index: Path) -> dict[str, str]:
    """An index's tensor names mapped to the names of files in its folder."""
    if index.stat().st_size > MAX_HEADER:
        raise UnreadableCheckpoint(f"{index}: larger than the limit of {MAX_HEADER} bytes")
    try:
        content = parse_object(index.read_bytes(), "the index")
    except InvalidSafetensors as error:
        raise UnreadableCheckpoint(f"{index}: {error}") from None
    weight_map = content.get("weight_map")
    if not isinstance(weight_map, dict) or not all(isinstance(file, str) for file in weight_map.values()):
        raise UnreadableCheckpoint(f"{index}: weight_map is no object of names mapped to file names")
    for name in set(weight_map.values()):
        if name in ("", ".", "..") or any(sign in name for sign in "/\\:\0"):
            raise UnreadableCheckpoint(f"{index}: {name[:100]!r} is not the name of a file in the index's own folder")
    return weight_map
