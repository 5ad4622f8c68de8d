"""Room on the disk of a job's working files. An attempt that failed for want of it is tried again once there is some.

Another attempt would fail at once, and three crashes in a row fail the job: in a second, where a disk is full for a minute.
"""

import os
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

from wbar_store.full_disk import is_full

LEAST = 4 * 1024**2  # bytes; a job that has just begun has no file to go by
WAIT_SECONDS = 120.0


def has_room(folder: Path) -> bool:
    """Return whether the disk takes the next files of a job: twice the largest of those in its folder."""
    try:
        largest = max((path.stat().st_size for path in folder.iterdir()), default=0)
        with tempfile.TemporaryFile(dir=folder) as file:
            os.posix_fallocate(file.fileno(), 0, max(LEAST, 2 * largest))
    except OSError as error:
        return not is_full(error)
    return True


def wait_for_room(folder: Path, is_over: Callable[[], bool]) -> None:
    """Wait until there is room, for WAIT_SECONDS at most. is_over: whether waiting has become of no use."""
    deadline = time.monotonic() + WAIT_SECONDS
    while not has_room(folder) and not is_over() and time.monotonic() < deadline:
        time.sleep(0.5)
