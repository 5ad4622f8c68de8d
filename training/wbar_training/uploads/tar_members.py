"""The members of a tar archive, read forward and strictly: everything is refused at the header, before its content.

Python's tarfile takes a file that stops anywhere for a whole one, keeps every member in memory, and follows sizes out of
extended headers. Here an archive ends with its two blocks of zeros and nothing but zeros after them; links, devices and
sparse files are refused; of the extended headers only name and size are read, and they are small.

Formats: POSIX.1-2017 pax and ustar; GNU's long names and large sizes.
"""

from collections.abc import Callable, Iterator

from wbar.errors import ContentTooLarge, InvalidArchive, UnsafePath
from wbar_averaging.quoting import quoted
from wbar_training.uploads.compressed_streams import Stream
from wbar_training.uploads.limits import UploadLimits
from wbar_training.uploads.member_names import Names
from wbar_training.uploads.members import PIECE, Member

BLOCK = 512
MAX_EXTENSION = 1024 * 1024  # bytes of a pax header or a long name
_FILES, _FOLDER = (b"0", b"\0", b"7"), b"5"
_LINKS, _SPECIAL = (b"1", b"2", b"K"), (b"3", b"4", b"6")


def tar_members(stream: Stream, limits: UploadLimits, wanted: Callable[[str], bool]) -> Iterator[Member]:
    """Yield the members that are wanted; the others are passed over, and counted. What is not read of one is passed over, too.

    Raises InvalidArchive, UnsafePath or ContentTooLarge.
    """
    names, files = Names(), 0
    extensions: dict[str, str] = {}
    while (header := _header(stream)) != bytes(BLOCK):
        _check_sum(header, stream.position)
        name, kind, size = _name(header), header[156:157], _number(header[124:136], "size")
        if kind in (b"x", b"L", b"g"):
            extensions |= _extension(stream, kind, size)
            continue
        name, size = extensions.get("path", name), int(extensions.get("size", size))
        extensions = {}
        is_folder = kind == _FOLDER or (kind == b"\0" and name.endswith("/"))
        _check_kind(name, kind, is_folder)
        files += 1
        if files > limits.files:
            raise ContentTooLarge(f"the archive has more files and folders than the limit of {limits.files}")
        if stream.position + size > limits.bytes:
            raise ContentTooLarge(
                f"the archive unpacks to more than the limit of {limits.bytes} bytes at {quoted(name)}"
            )
        plain = names.add(name, is_folder)
        if is_folder:
            size = 0  # old archives give a folder the size of what it holds
        end = stream.position + size + -size % BLOCK
        if not is_folder and wanted(plain):
            yield Member(plain, size, _pieces(stream, stream.position, quoted(name), size))
        stream.skip(end - stream.position, quoted(name))
    _check_end(stream)


def _pieces(stream: Stream, begin: int, what: str, size: int) -> Iterator[bytes]:
    read = 0
    while read < size:
        if stream.position != begin + read:
            raise RuntimeError(f"{what} is read after the next member was asked for")
        piece = stream.read(min(PIECE, size - read))
        read += len(piece)
        if not piece:
            raise stream.cut_off(what, read, size)
        yield piece


def _header(stream: Stream) -> bytes:
    """Return the next header. Raises InvalidArchive where there is none; a file shorter than one is no archive at all."""
    if stream.position:
        return stream.exactly(BLOCK, "the tar archive")
    header = stream.read(BLOCK)
    if len(header) < BLOCK:
        raise InvalidArchive(f"the file has {len(header)} bytes: it is no zip, tar, tar.gz or tar.zst")
    return header


def _check_end(stream: Stream) -> None:
    if stream.exactly(BLOCK, "the tar archive's end") != bytes(BLOCK):
        raise InvalidArchive("a single block of zeros stands within the tar archive: its end is two")
    while padding := stream.read(64 * BLOCK):
        if padding.strip(b"\0"):
            raise InvalidArchive("something follows the end of the tar archive; only zeros may")


def _check_kind(name: str, kind: bytes, is_folder: bool) -> None:
    if kind in _LINKS:
        raise UnsafePath(f"{quoted(name)} is a link: archives may hold plain files only")
    if kind in _SPECIAL:
        raise UnsafePath(f"{quoted(name)} is a device or pipe: archives may hold plain files only")
    if not is_folder and kind not in _FILES:
        raise InvalidArchive(
            f"{quoted(name)} is of type {quoted(kind.decode('latin-1'))}: sparse files, parts of several volumes and the like "
            "are not read; pack the folder again with `tar -cf`"
        )


def _check_sum(header: bytes, position: int) -> None:
    blanked = header[:148] + b" " * 8 + header[156:]
    signed = sum(byte - 256 if byte > 127 else byte for byte in blanked) if max(blanked) > 127 else None
    if _number(header[148:156], "checksum") not in (sum(blanked), signed):
        raise InvalidArchive(
            f"there is no tar header at byte {position - BLOCK}: the file is no zip, tar, tar.gz or tar.zst, or it is damaged"
        )


def _name(header: bytes) -> str:
    name = header[:100].split(b"\0", 1)[0]
    prefix = header[345:500].split(b"\0", 1)[0] if header[257:263] == b"ustar\0" else b""
    return (prefix + b"/" + name if prefix else name).decode("utf-8", "surrogateescape")


def _number(field: bytes, what: str) -> int:
    """Read a number of a header: octal digits, or GNU's binary where the first bit is set."""
    if field[0] & 0x80:
        if field[0] != 0x80:
            raise InvalidArchive(f"a tar header gives a negative {what}")
        return int.from_bytes(field[1:], "big")
    digits = field.split(b"\0", 1)[0].strip(b" ")
    if digits.strip(b"01234567"):
        raise InvalidArchive(
            f"a tar header gives {quoted(digits.decode('latin-1'))} for the {what}: is it a tar archive?"
        )
    return int(digits or b"0", 8)


def _extension(stream: Stream, kind: bytes, size: int) -> dict[str, str]:
    """Read a pax header or a long name. Returns `path` and `size` where they are given."""
    if size > MAX_EXTENSION:
        raise InvalidArchive(f"an extended tar header has {size} bytes, more than the limit of {MAX_EXTENSION}")
    data = stream.exactly(size + -size % BLOCK, "an extended tar header")[:size]
    if kind == b"L":
        return {"path": data.split(b"\0", 1)[0].decode("utf-8", "surrogateescape")}
    found = dict(_records(data))
    if any(key.startswith("GNU.sparse") for key in found):
        raise InvalidArchive("the archive has sparse files; pack the folder again without `--sparse`")
    if "linkpath" in found:
        raise UnsafePath(f"a member is a link to {quoted(found['linkpath'])}: archives may hold plain files only")
    if "size" in found and not (found["size"].isascii() and found["size"].isdigit() and len(found["size"]) < 20):
        raise InvalidArchive(f"an extended tar header gives {quoted(found['size'])} for the size")
    if kind == b"g" and found.keys() & {"path", "size"}:
        raise InvalidArchive("an extended tar header gives all files one name or size")
    return {key: found[key] for key in ("path", "size") if key in found}


def _records(data: bytes) -> Iterator[tuple[str, str]]:
    """Yield the keywords and values of a pax header: `length keyword=value` and a line feed, the length in bytes."""
    at = 0
    while at < len(data):
        length, _, rest = data[at : at + 20].partition(b" ")
        end = at + int(length) if length.isdigit() and len(length) < 9 and rest else -1
        record = data[at + len(length) + 1 : end - 1]
        key, equals, value = record.partition(b"=")
        if end > len(data) or end <= at + len(length) + 1 or data[end - 1 : end] != b"\n" or not equals:
            raise InvalidArchive("an extended tar header is damaged")
        yield key.decode("utf-8", "replace"), value.decode("utf-8", "surrogateescape")
        at = end
