"""The child's side of `child_content`: pieces of bytes, one after the other, into the pipe. It loads no store."""

import os
from collections.abc import Iterable
from multiprocessing.connection import Connection


def write_content(end: Connection, pieces: Iterable[bytes | memoryview]) -> None:
    """Write the pieces to the worker, and close the end."""
    with end:
        for piece in pieces:
            left = memoryview(piece)
            while left:
                left = left[os.write(end.fileno(), left) :]
