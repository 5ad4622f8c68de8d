"""A tar's bytes out of plain, gzip or zstd files: read forward once, counted, and complete only at the very end.

Python's own streams end in silence where a zstd frame is cut off. Here a stream that stops before its trailer raises.
"""

import gzip
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO, Protocol

from wbar.errors import ContentTooLarge, InvalidArchive
from wbar_averaging.quoting import reason
from wbar_training.uploads.members import PIECE

GZIP, ZSTD = b"\x1f\x8b", b"\x28\xb5\x2f\xfd"
FRAME_CHUNK = 2048  # compressed bytes taken at a time: zstd makes at most 128 KiB of four, so 64 MiB of these


class Source(Protocol):
    """Anything that bytes are read from."""

    def read(self, size: int, /) -> bytes:
        """Return at most `size` bytes; none at the end."""
        ...


class Stream:
    """Bytes in the order of the file, at most `limit` of them."""

    def __init__(self, source: Source, limit: int) -> None:
        self._source, self._limit = source, limit
        self.position = 0

    def read(self, size: int) -> bytes:
        """Return `size` bytes, fewer only at the end. Raises ContentTooLarge beyond the limit."""
        parts, missing = [], size
        while missing:
            part = self._source.read(min(missing, PIECE))
            if not part:
                break
            parts.append(part)
            missing -= len(part)
            self._count(len(part))
        return parts[0] if len(parts) == 1 else b"".join(parts)

    def exactly(self, size: int, what: str) -> bytes:
        """Return `size` bytes of `what`. Raises InvalidArchive where there are fewer."""
        data = self.read(size)
        if len(data) != size:
            raise self.cut_off(what, len(data), size)
        return data

    @staticmethod
    def cut_off(what: str, found: int, size: int) -> InvalidArchive:
        """Return the error of `size` bytes of which only `found` are there."""
        return InvalidArchive(f"{what} is cut off: {found} of {size} bytes are there; was the upload cut off?")

    def skip(self, size: int, what: str) -> None:
        """Pass over `size` bytes without keeping them."""
        while size:
            size -= len(self.exactly(min(size, PIECE), what))

    def _count(self, count: int) -> None:
        self.position += count
        if self.position > self._limit:
            raise ContentTooLarge(f"the archive unpacks to more than the limit of {self._limit} bytes")


@contextmanager
def opened(path: Path, head: bytes, limit: int) -> Iterator[Stream]:
    """Open a file that begins with `head`. A damaged or truncated stream raises InvalidArchive while it is read."""
    with open(path, "rb") as raw:
        if head[:2] == GZIP:
            with gzip.GzipFile(fileobj=raw) as unpacked:
                yield Stream(GzipContent(unpacked), limit)
        elif head[:4] == ZSTD:
            yield Stream(ZstdContent(raw), limit)
        else:
            yield Stream(raw, limit)


class GzipContent:
    """The content of gzip members that follow one another: of its own, GzipFile verifies checksum and length of each."""

    def __init__(self, file: gzip.GzipFile) -> None:
        self._file = file

    def read(self, size: int) -> bytes:
        """Return some bytes, none at the end, after which only zeros follow. Raises InvalidArchive for a damaged member."""
        try:
            return self._file.read(size)
        except (EOFError, zlib.error, OSError) as error:
            raise InvalidArchive(f"the gzip stream cannot be read ({reason(error)}): was the upload cut off?") from None


class ZstdContent:
    """The content of zstd frames that follow one another to the end of the file."""

    def __init__(self, raw: BinaryIO) -> None:
        import zstandard

        self._errors = zstandard.ZstdError
        self._new_frame = zstandard.ZstdDecompressor().decompressobj
        self._raw, self._frame, self._begun = raw, self._new_frame(), False
        self._packed, self._ready, self._at = b"", b"", 0

    def read(self, size: int) -> bytes:
        """Return some bytes, none at the end. Raises InvalidArchive for a damaged frame, and for one without its end."""
        while self._at >= len(self._ready):
            packed = self._packed or self._raw.read(FRAME_CHUNK)
            if not packed:
                if self._begun:
                    raise InvalidArchive("the zstd stream has no end: was the upload cut off?")
                return b""
            try:
                self._ready, self._at, self._begun = self._frame.decompress(packed), 0, True
            except self._errors as error:
                raise InvalidArchive(f"the zstd stream cannot be read: {reason(error)}") from None
            self._packed = b""
            if self._frame.eof:
                self._packed, self._frame, self._begun = self._frame.unused_data, self._new_frame(), False
        data = self._ready[self._at : self._at + size]
        self._at += len(data)
        return data
