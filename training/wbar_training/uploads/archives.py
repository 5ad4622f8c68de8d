"""The files of an archive or a folder, one at a time: checked by name, counted, and read only where they are wanted.

A member that is no image is neither unpacked nor kept, whatever it is: an archive within the archive stays closed. It
counts against the limits all the same, since a reader passes over it.
"""

import os
import stat
import zlib
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import BinaryIO

from wbar.errors import ContentTooLarge, InvalidArchive, UnsafePath
from wbar_averaging.quoting import quoted, reason
from wbar_averaging.zip_directory import DEFLATED, STORED, Entry, InvalidZip, ZipTooLarge, read_directory
from wbar_training.uploads import compressed_streams
from wbar_training.uploads.limits import UploadLimits
from wbar_training.uploads.member_names import Names
from wbar_training.uploads.members import PIECE, Member
from wbar_training.uploads.tar_members import tar_members

Wanted = Callable[[str], bool]
LAYOUT = "expected a zip, tar, tar.gz or tar.zst with train/<class>/ images; was the upload cut off?"


def archive_members(path: Path, limits: UploadLimits, wanted: Wanted) -> Iterator[tuple[str, bytes]]:
    """Yield name and content of the wanted files of a zip, tar, tar.gz or tar.zst; the content decides.

    Raises what `streamed_members` does.
    """
    for member in streamed_members(path, limits, wanted):
        yield member.name, b"".join(member.pieces)


def streamed_members(path: Path, limits: UploadLimits, wanted: Wanted) -> Iterator[Member]:
    """Yield the wanted files of an archive, whose content is read as it is asked for: before the next file is.

    wanted: whether a file is read, by its name with plain slashes.

    Raises InvalidArchive, UnsafePath or ContentTooLarge; so do the pieces.
    """
    with open(path, "rb") as file:
        head = file.read(4)
    if head[:2] == b"PK":
        yield from _zip_members(path, limits, wanted)
    elif len(head) < 4:
        raise InvalidArchive(f"the file has {len(head)} bytes: {LAYOUT}")
    else:
        with compressed_streams.opened(path, head, limits.bytes) as stream:
            yield from tar_members(stream, limits, wanted)


def folder_members(folder: Path, limits: UploadLimits, wanted: Wanted) -> Iterator[tuple[str, bytes]]:
    """Yield the same of a folder, which may hold no links."""
    names, files, total = Names(), 0, 0
    # By descriptors: what is looked at here cannot be replaced by a link to somewhere else before it is read.
    for here, folders, found, descriptor in os.fwalk(folder, follow_symlinks=False):
        folders.sort()
        for name in sorted([*folders, *found]):
            relative = (Path(here) / name).relative_to(folder).as_posix()
            kind = os.stat(name, dir_fd=descriptor, follow_symlinks=False)
            if stat.S_ISLNK(kind.st_mode):
                raise UnsafePath(f"{quoted(relative)} is a link: folders may hold plain files only")
            if not stat.S_ISREG(kind.st_mode):
                continue
            plain = names.add(relative)
            files, total = files + 1, total + kind.st_size
            _check_totals(files, total, limits)
            if wanted(plain):
                with open(name, "rb", opener=partial(_open_plain, descriptor)) as file:
                    yield plain, file.read()


def _open_plain(folder: int, name: str, flags: int) -> int:
    return os.open(name, flags | os.O_NOFOLLOW | os.O_NONBLOCK, dir_fd=folder)


def _zip_members(path: Path, limits: UploadLimits, wanted: Wanted) -> Iterator[Member]:
    try:
        entries = read_directory(path, limits.files)
    except ZipTooLarge as error:
        raise ContentTooLarge(str(error)) from None
    except InvalidZip as error:
        raise InvalidArchive(f"the archive cannot be read ({error}): {LAYOUT}") from None
    _check_totals(len(entries), sum(entry.size for entry in entries), limits)
    names = Names()
    plain = [(names.add(entry.name, entry.is_folder), entry) for entry in entries]
    for _, entry in plain:
        kind = entry.mode & 0o170000
        if kind == 0o120000:
            raise UnsafePath(f"{quoted(entry.name)} is a link: archives may hold plain files only")
        if kind not in (0, 0o100000, 0o040000):
            raise UnsafePath(f"{quoted(entry.name)} is a device or pipe: archives may hold plain files only")
    with open(path, "rb") as file:
        for name, entry in plain:
            if not entry.is_folder and wanted(name):
                yield Member(name, entry.size, _pieces(file, entry))


def _pieces(file: BinaryIO, entry: Entry) -> Iterator[bytes]:
    """Yield an entry's content, and compare its length and its checksum with what the archive says."""
    if entry.method not in (STORED, DEFLATED):
        raise InvalidArchive(
            f"{quoted(entry.name)} is packed by method {entry.method}: stored and deflated files are read"
        )
    size, checksum = 0, 0
    for piece in (_packed if entry.method == STORED else _inflated)(file, entry):
        size, checksum = size + len(piece), zlib.crc32(piece, checksum)
        if size > entry.size:
            raise InvalidArchive(f"{quoted(entry.name)} claims {entry.size} bytes, and holds more")
        yield piece
    if size != entry.size or checksum != entry.crc:
        raise InvalidArchive(
            f"{quoted(entry.name)} claims {entry.size} bytes with the checksum {entry.crc:08x}, and holds {size} with "
            f"{checksum:08x}"
        )


def _packed(file: BinaryIO, entry: Entry) -> Iterator[bytes]:
    left = entry.stored
    file.seek(entry.start)
    while piece := file.read(min(PIECE, left)):
        left -= len(piece)
        yield piece


def _inflated(file: BinaryIO, entry: Entry) -> Iterator[bytes]:
    inflate = zlib.decompressobj(-zlib.MAX_WBITS)
    follows = False
    try:
        for packed in _packed(file, entry):
            while packed and not inflate.eof:
                yield inflate.decompress(packed, PIECE)
                packed = inflate.unconsumed_tail
            follows = follows or bool(packed or inflate.unused_data)
        while not inflate.eof and (piece := inflate.decompress(b"", PIECE)):
            yield piece
    except zlib.error as error:
        raise InvalidArchive(f"{quoted(entry.name)} cannot be unpacked ({reason(error)})") from None
    if follows or not inflate.eof:
        wrong = "something follows its content" if follows else "its content is cut off"
        raise InvalidArchive(f"{quoted(entry.name)} is packed in {entry.stored} bytes, and within them {wrong}")


def _check_totals(files: int, total: int, limits: UploadLimits) -> None:
    if files > limits.files:
        raise ContentTooLarge(f"the archive has {files} files, more than the limit of {limits.files}")
    if total > limits.bytes:
        raise ContentTooLarge(f"the archive unpacks to {total} bytes or more, over the limit of {limits.bytes}")
