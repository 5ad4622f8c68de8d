"""A file of an archive, whose content comes piece by piece: no more than a piece of it is in memory."""

from collections.abc import Iterator
from dataclasses import dataclass

PIECE = 1024 * 1024  # bytes that are read at once


@dataclass(frozen=True)
class Member:
    """A file of an archive.

    name: with plain slashes.
    size: in bytes, as the archive says.
    pieces: of its content, to be read once, and before the next member is asked for. They raise InvalidArchive where the
        content is not what the archive says, which a zip shows at its end, or ContentTooLarge.
    """

    name: str
    size: int
    pieces: Iterator[bytes]
