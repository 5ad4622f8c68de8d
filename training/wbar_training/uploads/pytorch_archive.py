"""PyTorch's zip archive, checked before torch opens it: layout, checksums, and what its pickle asks for.

torch's own reader verifies neither checksums nor that entries lie apart: a flipped bit is another weight, and two names
for the same bytes are more content than the file holds.
"""

import re
from collections.abc import Mapping
from mmap import PAGESIZE
from pathlib import Path

import torch
from torch import Tensor

from wbar.errors import ContentTooLarge, CorruptFile, UnsafePickle
from wbar_averaging.quoting import quoted
from wbar_averaging.zip_directory import STORED, Entry, InvalidZip, ZipTooLarge, check_content, read_directory
from wbar_training.uploads.limits import UploadLimits
from wbar_training.uploads.pickle_opcodes import Opcodes

ENTRIES_BESIDE_TENSORS = 100  # version, byteorder, data.pkl and their like
# torch.package and TorchScript keep programs in the same container.
PROGRAMS = re.compile(r"code/|constants\.pkl$|constants/|\.data/(extern_modules|python_version)$|.*\.py$|extra/")
PLAIN = re.compile(r"data\.pkl|version|byteorder|\.format_version|\.storage_alignment|\.data/[\w.-]+|data/[\w.-]+|"
                   r"tensors/[\w.-]+")  # fmt: skip
SAVE = "save model.state_dict() with torch.save"


def check_archive(path: Path, limits: UploadLimits) -> list[Entry]:
    """Check the archive of torch.save at `path`, every byte of it, in constant memory; return its entries.

    Raises CorruptFile, ContentTooLarge, or UnsafePickle for a program and for a pickle that names one.
    """
    try:
        entries = read_directory(path, limits.tensors + ENTRIES_BESIDE_TENSORS)
        _check_names(entries)
        packed = next((entry for entry in entries if entry.method != STORED), None)
        if packed:
            raise CorruptFile(
                f"{quoted(packed.name)} is compressed; PyTorch writes uncompressed archives: save it with torch.save"
            )
        check_content(path, entries)
    except ZipTooLarge as error:
        raise ContentTooLarge(str(error)) from None
    except InvalidZip as error:
        raise CorruptFile(
            f"the archive cannot be trusted: {error}. Upload it again, or {SAVE} (checksums on: "
            "torch.serialization.set_crc32_options(True))"
        ) from None
    check_pickle(_content(path, next(entry for entry in entries if entry.name.endswith("/data.pkl")), limits))
    return entries


def check_mapped(tensors: Mapping[str, Tensor], entries: list[Entry]) -> None:
    """Raise CorruptFile unless the memory of each tensor of a mapped archive is an entry, from its first byte to its last.

    torch finds an entry by its name and takes from there as many bytes as the pickle says: into the next entries, where those
    are more than it has. Where the file was mapped is not known: at one address all must fit.
    """
    plain = [
        one.untyped_storage() for one in tensors.values() if one.layout is torch.strided and one.device.type == "cpu"
    ]
    claimed = sorted({(storage.data_ptr(), storage.nbytes()) for storage in plain if storage.nbytes()})
    sizes = {entry.start: entry.size for entry in entries if entry.size}
    begins = (claimed[0][0] - start for start in sizes) if claimed else iter((0,))
    if not any(
        begin % PAGESIZE == 0 and all(sizes.get(pointer - begin) == size for pointer, size in claimed)
        for begin in begins
    ):
        raise CorruptFile(
            "the pickle in the file gives its tensors more or fewer bytes than the archive has for them: was it changed?"
        )


def _check_names(entries: list[Entry]) -> None:
    roots, seen = set[str](), set[str]()
    for entry in entries:
        root, slash, rest = entry.name.partition("/")
        if (
            not slash
            or root in ("", ".", "..")
            or "\\" in entry.name
            or ".." in rest.split("/")
            or rest.startswith("/")
        ):
            raise CorruptFile(
                f"{quoted(entry.name)} points outside the archive's folder: torch.save writes no such name"
            )
        roots.add(root)
        if entry.name.casefold() in seen:
            raise CorruptFile(f"{quoted(entry.name)} is in the archive twice")
        seen.add(entry.name.casefold())
        if PROGRAMS.match(rest):
            raise UnsafePickle(
                f"{quoted(entry.name)} belongs to a program (TorchScript or torch.package), which is never run: {SAVE}"
            )
        if not PLAIN.fullmatch(rest):
            raise CorruptFile(f"{quoted(entry.name)} is no part of what torch.save writes: {SAVE}")
    if len(roots) != 1:
        raise CorruptFile(f"the archive has {len(roots)} folders, and torch.save writes one: {SAVE}")
    if f"{roots.pop()}/data.pkl" not in {entry.name for entry in entries}:
        raise CorruptFile("the archive has no data.pkl: it is no PyTorch file")


def _content(path: Path, entry: Entry, limits: UploadLimits) -> bytes:
    if entry.size > limits.header_bytes:
        raise ContentTooLarge(f"data.pkl has {entry.size} bytes, more than the limit of {limits.header_bytes}")
    with open(path, "rb") as file:
        file.seek(entry.start)
        return file.read(entry.size)


def check_bare_pickle(path: Path, limits: UploadLimits) -> None:
    """Check a file that is a pickle itself, or torch's legacy format, which is five pickles and then the numbers.

    Raises UnsafePickle, CorruptFile or ContentTooLarge.
    """
    with open(path, "rb") as file:
        data = file.read(limits.header_bytes + 1)
    try:
        check_pickle(data)
    except CorruptFile:
        if len(data) > limits.header_bytes:
            raise ContentTooLarge(f"the pickle is longer than the limit of {limits.header_bytes} bytes") from None
        raise


def check_pickle(data: bytes) -> None:
    """Raise UnsafePickle if the pickle names anything that is no tensor, CorruptFile if it cannot be read or is not known."""
    opcodes = Opcodes(data)
    if opcodes.refused:
        raise UnsafePickle(
            f"the file asks to run or build something other than tensors ({opcodes.refused}), which is never done: "
            "save model.state_dict(), not the model or a whole training object"
        )
    if opcodes.damaged:
        raise CorruptFile(f"the pickle in the file is damaged: {quoted(opcodes.damaged, 200)}; was the upload cut off?")
    if opcodes.protocol > 3:
        raise CorruptFile(
            f"the file is a pickle of protocol {opcodes.protocol}, and torch.load(weights_only=True) reads 2 and 3: {SAVE} and "
            "its default protocol"
        )
