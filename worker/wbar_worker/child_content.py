"""What a child gives back in bytes: through a pipe into the blob store, hashed and written as it comes.

`written_content.write_content` is the child's side. A child that reads strangers' files has no place in the store, and no file
of its own that the store could take over: what it says about its bytes is not believed, and a file that it has had open could
be written again. So the worker hashes what it stores. Nothing is written twice, and the child's reading, the digest and the
writing go on at the same time.
"""

import fcntl
import os
from contextlib import suppress
from multiprocessing import Pipe
from types import TracebackType

from wbar.errors import ContentTooLarge
from wbar_store.blobs import CHUNK, Blobs, Received, Upload


class ChildContent:
    """The worker's end: `take` what is there as long as the child runs, `finish` once it has ended.

    child_end: goes with the child's request. It stays open here, too: a pipe without bytes is never ready before `finish`.

    What is not finished by the end of the block leaves nothing.
    """

    def __init__(self, blobs: Blobs, most: int) -> None:
        """Prepare for at most so many bytes."""
        self._blobs, self._most = blobs, most
        self._upload: Upload | None = None
        # Two, in turn: the store may still hash the last one, and no longer than until it has taken the next.
        self._buffers = [memoryview(bytearray(CHUNK)), memoryview(bytearray(CHUNK))]
        self._filled = 0
        self._pipe, self.child_end = Pipe(duplex=False)
        os.set_blocking(self._pipe.fileno(), False)
        with suppress(OSError, AttributeError):  # a larger pipe is Linux's, and saves turns
            fcntl.fcntl(self._pipe.fileno(), fcntl.F_SETPIPE_SZ, CHUNK)

    def fileno(self) -> int:
        """Return what can be waited for."""
        return self._pipe.fileno()

    def take(self) -> bool:
        """Store what the pipe holds; returns False where it holds nothing.

        Raises ContentTooLarge, and what the store raises.
        """
        try:
            read = os.readv(self._pipe.fileno(), [self._buffers[0][self._filled :]])
        except BlockingIOError:
            # Nothing now. Of a child that has ended nothing is to come, whoever holds its end of the pipe still.
            read = 0
        self._filled += read
        if self._stored + self._filled > self._most:
            raise ContentTooLarge("what it unpacks to is larger than an upload may be")
        if self._filled == CHUNK:
            self._store()
        return read > 0

    def finish(self) -> Received:
        """Store what is left of a child that has ended, and return the whole. Raises as `take`."""
        self.child_end.close()
        while self.take():
            pass
        self._store()
        upload, self._upload = self._upload or self._blobs.receive(), None
        try:
            return upload.finish()
        except BaseException:
            upload.abort()
            raise

    @property
    def _stored(self) -> int:
        return 0 if self._upload is None else self._upload.bytes

    def _store(self) -> None:
        if self._filled == 0:
            return
        if self._upload is None:
            self._upload = self._blobs.receive()
        self._upload.write(self._buffers[0][: self._filled])
        self._buffers.reverse()
        self._filled = 0

    def __enter__(self) -> "ChildContent":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._pipe.close()
        self.child_end.close()
        if self._upload is not None:
            self._upload.abort()
