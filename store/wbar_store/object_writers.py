"""Writing an object of the blob store: a file of a local folder, and a digest that is made beside the writing.

A large object costs three things: its sha256, the copy into the page cache, and the disk. One after the other they are the
sum; here the digest is made in another thread (hashlib lets go of the GIL), and the disk writes while more bytes come.
"""

import hashlib
import os
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path

WORTH_A_THREAD = 256 * 1024  # bytes; fewer are hashed sooner than a thread is told of them
SYNC_BYTES = (
    32 * 1024 * 1024
)  # after so many the disk is told to write; less is written as fast when the file is closed

# Threads that only compute or only wait for a disk, and for nothing that waits for them.
_hashing = ThreadPoolExecutor(os.cpu_count() or 1, "sha256")
_syncing = ThreadPoolExecutor(4, "sync")


class Sha256:
    """The sha256 of bytes that come in order; `update` returns while the last ones are still being hashed."""

    def __init__(self) -> None:
        self._hash = hashlib.sha256()
        self._last: Future[None] | None = None

    def update(self, data: bytes | memoryview) -> None:
        """Append bytes, which must not change before this or `hexdigest` is called again."""
        self._wait()
        if len(data) < WORTH_A_THREAD:
            self._hash.update(data)
        else:
            try:
                self._last = _hashing.submit(self._hash.update, data)
            except RuntimeError:  # the interpreter is ending, and takes no new work
                self._hash.update(data)

    def hexdigest(self) -> str:
        """Return the digest of all that came."""
        self._wait()
        return self._hash.hexdigest()

    def _wait(self) -> None:
        last, self._last = self._last, None
        if last is not None:
            last.result()


class FileWriter:
    """A new file, which the disk is told to write while it grows. Raises OSError, FileExistsError among them."""

    def __init__(self, path: Path) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        self._file = open(path, "xb", buffering=0)  # noqa: SIM115  # closed by `close`
        self._unsynced = 0
        self._sync: Future[None] | None = None

    def write(self, data: bytes | memoryview) -> None:
        """Append bytes."""
        left = memoryview(data)
        while left:
            left = left[self._file.write(left) :]
        self._unsynced += len(data)
        if self._unsynced >= SYNC_BYTES and (self._sync is None or self._sync.done()):
            self._wait()
            self._unsynced = 0
            with suppress(RuntimeError):  # the interpreter is ending; the file is synced where it is put in its place
                self._sync = _syncing.submit(os.fdatasync, self._file.fileno())

    def close(self) -> None:
        """Close the file. Its last bytes are not durable yet."""
        try:
            self._wait()
        finally:
            self._file.close()

    def _wait(self) -> None:
        sync, self._sync = self._sync, None
        if sync is not None:
            sync.result()  # the kernel says once that a write failed, and not again
