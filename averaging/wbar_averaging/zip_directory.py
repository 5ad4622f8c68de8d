"""A zip archive's directory, read strictly: one reading of the file, or none.

Readers of zip files differ in what they believe when the parts of an archive contradict each other, and an attack hides
between two readings. Here the directory at the end, the header before each entry and the sizes of both must agree; the
entries must lie one after another without overlap or gap from the first byte to the directory, and the directory must
end where the end record begins. Memory: the directory, whose size is checked before it is read.

Format: PKWARE's APPNOTE.TXT 6.3.10, sections 4.3 to 4.5.
"""

import os
import struct
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from wbar_averaging.quoting import quoted

STORED, DEFLATED = 0, 8
MAX_DIRECTORY = 256 * 1024 * 1024  # bytes; two million entries with names of sixty characters
CHUNK = 1024 * 1024

_ENTRY, _LOCAL = struct.Struct("<4s4B4H3L5H2L"), struct.Struct("<4s5H3L2H")
_END, _END64, _LOCATOR64 = struct.Struct("<4s4H2LH"), struct.Struct("<4sQ2H2L4Q"), struct.Struct("<4sLQL")
_ENCRYPTED, _DESCRIPTOR, _UTF8 = 1, 8, 0x800
_FILLED, _FILLED16 = 0xFFFFFFFF, 0xFFFF


class InvalidZip(ValueError):
    """The archive is damaged, or its parts contradict each other; the message says where."""


class ZipTooLarge(InvalidZip):
    """The archive has more entries, or a larger directory, than is read."""


@dataclass(frozen=True, slots=True)
class Entry:
    """One entry: where its bytes lie, and what the directory says of them.

    start: byte of the file at which the content begins. stored: how many bytes lie there. size: once unpacked.
    mode: as Unix has it, 0 where another system wrote the archive.
    """

    name: str
    method: int
    start: int
    stored: int
    size: int
    crc: int
    mode: int

    @property
    def is_folder(self) -> bool:
        """Whether the entry is a folder, which has no content."""
        return self.name.endswith("/")


@dataclass(frozen=True, slots=True)
class _Claim:
    """An entry of the directory, before the header at `offset` was compared with it."""

    raw: bytes
    flags: int
    method: int
    crc: int
    stored: int
    size: int
    offset: int
    mode: int


def read_directory(path: Path, max_entries: int) -> list[Entry]:
    """Return all entries in the order in which they lie in the file.

    Raises InvalidZip for anything damaged, contradictory, encrypted or hidden; ZipTooLarge for more than `max_entries`.
    """
    size = os.path.getsize(path)
    with open(path, "rb") as file:
        start, length, count = _directory(file, size)
        if count > max_entries:
            raise ZipTooLarge(f"the archive has {count} entries, more than the limit of {max_entries}")
        if length > MAX_DIRECTORY:
            raise ZipTooLarge(f"the zip directory has {length} bytes, more than the limit of {MAX_DIRECTORY}")
        file.seek(start)
        claims = sorted(_claims(file.read(length), count), key=lambda claim: claim.offset)
        following = [*(claim.offset for claim in claims), start]
        if following[0] != 0:
            raise InvalidZip(f"{following[0]} bytes lie before the archive's first entry")
        entries = []
        for claim, end in zip(claims, following[1:], strict=True):
            entries.append(_entry(file, claim, end))
    return entries


def check_content(path: Path, entries: list[Entry]) -> None:
    """Compare the checksums of stored entries with their bytes, a chunk at a time. Raises InvalidZip naming the entry."""
    with open(path, "rb") as file:
        for entry in entries:
            file.seek(entry.start)
            left, crc = entry.stored, 0
            while left:
                chunk = file.read(min(left, CHUNK))
                if not chunk:
                    raise InvalidZip(f"{quoted(entry.name)}: the file ends {left} bytes too early")
                crc, left = zlib.crc32(chunk, crc), left - len(chunk)
            if crc != entry.crc:
                raise InvalidZip(
                    f"{quoted(entry.name)}: its bytes have the checksum {crc:08x}, the archive says {entry.crc:08x}: they were "
                    "changed after they were written"
                )


def _directory(file: BinaryIO, size: int) -> tuple[int, int, int]:
    """Return the first byte, the bytes and the entries of the directory."""
    tail = min(size, _END.size + _FILLED16)
    file.seek(size - tail)
    data = file.read(tail)
    at = data.rfind(b"PK\5\6")
    if at < 0 or len(data) - at < _END.size:
        raise InvalidZip("the zip directory is missing at the end of the file: was it cut off?")
    _, disk, first_disk, here, count, length, start, comment = _END.unpack_from(data, at)
    if len(data) - at != _END.size + comment:
        raise InvalidZip(f"{len(data) - at - _END.size} bytes follow the zip directory, {comment} are announced")
    end = size - tail + at
    file.seek(max(0, end - _LOCATOR64.size))
    locator = file.read(_LOCATOR64.size)
    if locator[:4] == b"PK\6\7" and len(locator) == _LOCATOR64.size:
        _, _, end64, _ = _LOCATOR64.unpack(locator)
        if end64 + _END64.size != end - _LOCATOR64.size:
            raise InvalidZip(f"the zip64 end record is said to begin at byte {end64}, which is not before its locator")
        file.seek(end64)
        signature, rest, _, _, disk, first_disk, here64, count64, length64, start64 = _END64.unpack(
            file.read(_END64.size)
        )
        if signature != b"PK\6\6" or rest != _END64.size - 12:
            raise InvalidZip("the zip64 end record is damaged")
        pairs = (
            (count, _FILLED16, count64),
            (here, _FILLED16, here64),
            (length, _FILLED, length64),
            (start, _FILLED, start64),
        )
        if any(short not in (filled, long) for short, filled, long in pairs):
            raise InvalidZip("the end record and the zip64 end record contradict each other")
        here, count, length, start, end = here64, count64, length64, start64, end64
    if disk or first_disk or here != count:
        raise InvalidZip("the archive is one part of several")
    if start + length != end:
        raise InvalidZip(f"the zip directory is said to lie at bytes {start} to {start + length}, and it ends at {end}")
    return start, length, count


def _claims(directory: bytes, count: int) -> Iterator[_Claim]:
    at = 0
    for index in range(count):
        if len(directory) - at < _ENTRY.size or directory[at : at + 4] != b"PK\1\2":
            raise InvalidZip(f"the zip directory announces {count} entries, and number {index + 1} is not there")
        (_, _, _, _, _, flags, method, _, _, crc, stored, size, name_length, extra_length, comment, disk, _, attributes,
         offset) = _ENTRY.unpack_from(directory, at)  # fmt: skip
        begin = at + _ENTRY.size
        at = begin + name_length + extra_length + comment
        if at > len(directory):
            raise InvalidZip(f"entry {index + 1} of the zip directory goes beyond its end")
        raw = directory[begin : begin + name_length]
        size, stored, offset = _wide(directory[begin + name_length : at - comment], size, stored, offset)
        if disk not in (0, _FILLED16):
            raise InvalidZip("the archive is one part of several")
        yield _Claim(raw, flags, method, crc, stored, size, offset, attributes >> 16)
    if at != len(directory):
        raise InvalidZip(f"{len(directory) - at} bytes follow the {count} entries that the zip directory announces")


def _wide(extra: bytes, size: int, stored: int, offset: int) -> tuple[int, int, int]:
    """Take from the zip64 field what does not fit 32 bits: size, stored size and offset, in this order."""
    at, seen = 0, False
    while at + 4 <= len(extra):
        kind, length = struct.unpack_from("<2H", extra, at)
        if kind == 1:
            field = extra[at + 4 : at + 4 + length]
            needed = 8 * (size, stored, offset).count(_FILLED)
            if seen or len(field) < needed:
                raise InvalidZip("a zip64 field occurs twice or is too short")
            values = iter(struct.unpack_from(f"<{needed // 8}Q", field))
            size, stored, offset = (next(values) if value == _FILLED else value for value in (size, stored, offset))
            seen = True
        at += 4 + length
    return size, stored, offset


def _entry(file: BinaryIO, claim: _Claim, following: int) -> Entry:
    """Compare an entry of the directory with the header before its content; the next one begins at byte `following`."""
    name = _name(claim)
    if claim.flags & (_ENCRYPTED | 0x40 | 0x2000):
        raise InvalidZip(f"{name} is encrypted")
    file.seek(claim.offset)
    header = file.read(_LOCAL.size)
    if len(header) < _LOCAL.size or header[:4] != b"PK\3\4":
        raise InvalidZip(f"{name}: there is no entry at byte {claim.offset}")
    _, _, flags, method, _, _, crc, stored, size, name_length, extra_length = _LOCAL.unpack(header)
    raw, extra = file.read(name_length), file.read(extra_length)
    if raw != claim.raw:
        raise InvalidZip(f"{name} is called {quoted(raw.decode(errors='replace'))} in its own header")
    if (method, flags & ~6) != (claim.method, claim.flags & ~6):  # bits 1 and 2: how hard the packer tried
        raise InvalidZip(f"{name}: the header and the zip directory disagree about how it is packed")
    size, stored, _ = _wide(extra, size, stored, 0)
    later = bool(flags & _DESCRIPTOR)  # checksum and sizes follow the content, and may be 0 in the header
    for what, here, there in (
        ("checksum", crc, claim.crc),
        ("stored size", stored, claim.stored),
        ("size", size, claim.size),
    ):
        if here != there and not (later and here == 0):
            raise InvalidZip(f"{name}: its header says {what} {here}, the zip directory {there}")
    start = claim.offset + _LOCAL.size + name_length + extra_length
    end = start + claim.stored
    if end > following:
        raise InvalidZip(
            f"{name} claims bytes {start} to {end}, and byte {following} begins something else: entries overlap"
        )
    _check_descriptor(file, claim, end, following, later)
    if claim.method == STORED and claim.stored != claim.size:
        raise InvalidZip(f"{name} is stored in {claim.stored} bytes and claims {claim.size}")
    return Entry(_decoded(claim), claim.method, start, claim.stored, claim.size, claim.crc, claim.mode)


def _check_descriptor(file: BinaryIO, claim: _Claim, end: int, following: int, expected: bool) -> None:
    """Check what lies between an entry's content and the next entry: its checksum and sizes again, or nothing."""
    length = following - end
    if not expected and length == 0:
        return
    if expected and length in (12, 16, 20, 24):
        file.seek(end)
        data = file.read(length)
        signed = length in (16, 24)
        sizes = struct.unpack("<LLL" if length < 20 else "<LQQ", data[4:] if signed else data)
        if sizes == (claim.crc, claim.stored, claim.size) and (not signed or data[:4] == b"PK\7\x08"):
            return
    raise InvalidZip(
        f"{_name(claim)}: the {length} bytes between its content and the next entry are not what belongs there"
    )


def _decoded(claim: _Claim) -> str:
    try:
        name = claim.raw.decode("utf-8" if claim.flags & _UTF8 or claim.raw.isascii() else "cp437")
    except UnicodeDecodeError:
        raise InvalidZip(f"the name {_name(claim)} is said to be UTF-8 and is not") from None
    if "\0" in name:
        raise InvalidZip(f"the name {_name(claim)} has a NUL in it")
    return name


def _name(claim: _Claim) -> str:
    return quoted(claim.raw.decode(errors="backslashreplace"))
