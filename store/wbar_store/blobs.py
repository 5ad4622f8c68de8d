"""Content-addressed bytes: streamed to a temporary name, synced, renamed to their sha256, counted before deletion.

Writing: `receive` streams and hashes; `keep` gives the content its name under a hold. The caller then commits the row
that refers to it and releases the hold, so that a deletion that runs beside it never takes the bytes away. Deleting: a
blob goes when it has no reference and no hold; it is marked first, so that no new hold can begin. Its file is
deleted inside the transaction that deletes its row: the one place where a transaction spans other I/O, since its lock makes a
writer that brings the content back wait.
"""

import logging
import os
import secrets
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import unquote, urlparse

import obstore
from obstore.exceptions import BaseError
from obstore.store import HTTPStore, LocalStore, MemoryStore, ObjectStore, from_url

from wbar_store.blob_references import BlobReferences
from wbar_store.database import Database
from wbar_store.object_writers import FileWriter, Sha256

if TYPE_CHECKING:
    from obstore import WritableFile

log = logging.getLogger("wbar.store")

CHUNK = 1024 * 1024
STRAY = timedelta(hours=1)  # a younger file without a row may be one that is just being stored
PARTS = "parts"  # where the parts of uploads lie
HALF = "#*"  # what a version before 0.7 had after the name of an object in a local store, until its writer was closed


@dataclass(frozen=True)
class Received:
    """Received bytes under a temporary name, which no row refers to yet."""

    temporary: str
    sha256: str
    bytes: int


@dataclass(frozen=True)
class Garbage:
    """Content that nothing needs, by digest, with its size in bytes.

    unreferenced: whose row says that nothing refers to it.
    strays: that no row is about, for instance after the database was restored from an older backup.
    """

    unreferenced: dict[str, int]
    strays: dict[str, int]


@dataclass(frozen=True)
class Part:
    """An object with some of the bytes of an upload that arrives in parts; durable."""

    name: str
    bytes: int


class _Writing:
    """An object in the making: `write` the bytes as they come, then `finish`, or `abort` and nothing is left."""

    def __init__(self, blobs: "Blobs", folder: str) -> None:
        self._blobs = blobs
        self._name = f"{folder}/{secrets.token_hex(16)}"
        self._writer: FileWriter | WritableFile
        if blobs.root is not None:
            self._writer = FileWriter(blobs.root / self._name)
        else:
            self._writer = obstore.open_writer(blobs.store, self._name, buffer_size=8 * CHUNK)  # a part of S3 has 5 MiB
        self.bytes = 0

    def write(self, data: bytes | memoryview) -> None:
        """Append bytes."""
        # A bucket's writer keeps what it is given until it sends a part.
        self._writer.write(data if self._blobs.root is not None else bytes(data))
        self.bytes += len(data)

    def abort(self) -> None:
        """Delete what was written."""
        # A writer that is closed makes its object visible under the temporary name; it is deleted right after. It may fail
        # to close, for instance where the disk is full; what failed before matters more.
        with suppress(OSError, BaseError):
            self._writer.close()
        with suppress(OSError, BaseError):
            self._blobs.discard(self._name)


class Upload(_Writing):
    """A whole upload in progress, hashed on its way."""

    def __init__(self, blobs: "Blobs") -> None:
        super().__init__(blobs, "tmp")
        self._hash = Sha256()

    def write(self, data: bytes | memoryview) -> None:
        """Append bytes, which must not change before the next ones are appended, or the upload has ended."""
        self._hash.update(data)
        super().write(data)

    def finish(self) -> Received:
        """Close the object and return its temporary name, digest and size."""
        self._writer.close()
        return Received(self._name, self._hash.hexdigest(), self.bytes)


class PartUpload(_Writing):
    """A part of an upload in progress."""

    def __init__(self, blobs: "Blobs") -> None:
        super().__init__(blobs, PARTS)

    def finish(self) -> Part:
        """Close the object and make it durable: from here on a row may say that its bytes are there."""
        self._writer.close()
        if (root := self._blobs.root) is not None:
            _sync(root / self._name)
            _sync(root / PARTS)
            _sync(root)
        return Part(self._name, self.bytes)


class Blobs:
    """A local folder or an S3 bucket, with a table of the holds and references of its blobs."""

    def __init__(self, url: str, database: Database) -> None:
        self.references = BlobReferences(database)
        self.root: Path | None = None
        self.store: ObjectStore
        parsed = urlparse(url)
        if parsed.scheme == "file":
            self.root = Path(unquote(parsed.path))
            self.root.mkdir(parents=True, exist_ok=True)
            self.store = LocalStore(self.root)
        else:
            self.store = from_url(url)

    # Writing.

    def receive(self) -> Upload:
        """Begin an upload."""
        return Upload(self)

    def receive_part(self) -> PartUpload:
        """Begin a part of an upload."""
        return PartUpload(self)

    def join(self, names: Iterable[str]) -> Received:
        """Write the parts of these names, one after the other, as one object under a temporary name. The parts stay.

        Raises FileNotFoundError where one is not there.
        """
        upload = self.receive()
        try:
            for name in names:
                for chunk in self._pieces(name):
                    upload.write(chunk)
            return upload.finish()
        except BaseException:
            upload.abort()
            raise

    def _pieces(self, name: str) -> Iterator[bytes | memoryview]:
        if self.root is not None:
            yield from _pieces_of(self.root / name)
        else:
            for chunk in obstore.get(self.store, name).stream(min_chunk_size=CHUNK):
                yield memoryview(chunk)

    def put_file(self, path: Path) -> Received:
        """Stream a local file into the store, under a temporary name."""
        upload = self.receive()
        try:
            for chunk in _pieces_of(path):
                upload.write(chunk)
            return upload.finish()
        except BaseException:
            upload.abort()
            raise

    def copy(self, sha256: str) -> Received:
        """Give content that is here already a temporary name, too. Raises FileNotFoundError where it is not here any more."""
        name = f"tmp/{secrets.token_hex(16)}"
        obstore.copy(self.store, self.path(sha256), name)  # within the store: a hard link in a folder
        return Received(name, sha256, self.size(sha256))

    def discard(self, temporary: str) -> None:
        """Delete the object of this name, if it is there, and the half of one whose writing failed."""
        with suppress(FileNotFoundError):
            obstore.delete(self.store, temporary)
        if self.root is not None:
            for half in (self.root / temporary).parent.glob(f"{Path(temporary).name}{HALF}"):
                half.unlink(missing_ok=True)

    @contextmanager
    def keep(self, received: Received) -> Iterator[str]:
        """Give the content its name and hold it while the block commits the row that refers to it.

        Nothing is left under the temporary name, also where that fails.
        """
        with self._discarded_on_failure(received):
            self._hold(received)
        try:
            with self._discarded_on_failure(received):
                self._place(received)
            yield received.sha256
        finally:
            self.references.release(received.sha256)

    @contextmanager
    def _discarded_on_failure(self, received: Received) -> Iterator[None]:
        try:
            yield
        except BaseException:
            with suppress(OSError, BaseError):  # the first error matters; the sweeper deletes what is left
                self.discard(received.temporary)
            raise

    def _hold(self, received: Received) -> None:
        for _ in range(600):
            if self.references.hold(received.sha256, received.bytes):
                return
            # The same content is being deleted: that takes milliseconds. If the deleter died, its work is finished here.
            time.sleep(0.02)
            self.finish_deletions()
        raise TimeoutError(f"blob {received.sha256} has been in deletion for too long")

    def _place(self, received: Received) -> None:
        target = self.path(received.sha256)
        if self.root is not None:
            # obstore does not sync; a row must never outlive the bytes it names.
            _sync(self.root / received.temporary)
        obstore.rename(self.store, received.temporary, target)
        if self.root is not None:
            _sync((self.root / target).parent)
            _sync((self.root / target).parent.parent)

    # Reading.

    @staticmethod
    def path(sha256: str) -> str:
        """Return the name under which the store keeps this content."""
        return f"sha256/{sha256[:2]}/{sha256}"

    def size(self, sha256: str) -> int:
        """Return the size of a blob in bytes."""
        return self.described(sha256)[0]

    def described(self, sha256: str) -> tuple[int, datetime]:
        """Return a blob's size in bytes, and when it was last stored: equal content that comes again replaces it."""
        head = obstore.head(self.store, self.path(sha256))
        return int(head["size"]), head["last_modified"]

    def chunks(self, sha256: str, begin: int, end: int) -> Iterator[bytes]:
        """Yield the bytes [begin, end) in pieces of about a megabyte."""
        if begin >= end:
            return
        response = obstore.get(self.store, self.path(sha256), options={"range": (begin, end)})
        for chunk in response.stream(min_chunk_size=CHUNK):
            yield bytes(chunk)

    def fetch(self, sha256: str, path: Path) -> None:
        """Copy a blob to a local file, whole or not at all; hard-linked where both are on one file system."""
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary = path.with_name(f".{path.name}.{secrets.token_hex(4)}.tmp")
        if self.root is None or not _link(self.root / self.path(sha256), temporary):
            with open(temporary, "wb") as file:
                for chunk in self.chunks(sha256, 0, self.size(sha256)):
                    file.write(chunk)
        os.replace(temporary, path)

    def presigned(self, sha256: str, seconds: float) -> str:
        """Return a URL at which a bucket gives a blob to whoever has it, for so long."""
        assert not isinstance(self.store, (LocalStore, MemoryStore, HTTPStore)), "only a bucket signs URLs"
        return obstore.sign(self.store, "GET", self.path(sha256), timedelta(seconds=seconds))

    def check(self) -> None:
        """Write and delete a small object. Raises OSError or an obstore error if the store does not allow it."""
        name = f"tmp/{secrets.token_hex(16)}"
        obstore.put(self.store, name, b"wbar")
        obstore.delete(self.store, name)

    # Deleting.

    def collect(self, candidates: list[str] | None = None) -> int:
        """Delete every blob (or those of `candidates`) without a reference and a hold. Returns how many."""
        self.references.mark_free(candidates)
        return self.finish_deletions()

    def finish_deletions(self) -> int:
        """Delete the marked blobs. Returns how many this call deleted: of several at once, one deletes each blob.

        One that cannot be deleted stays marked, and is tried again by the next call.
        """
        finished = 0
        for sha256 in self.references.marked():
            try:
                with self.references.forgetting(sha256) as deleted_here:
                    if deleted_here:
                        self.discard(self.path(sha256))
            except (OSError, BaseError) as error:
                log.error("blob %s could not be deleted (%s: %s)", sha256, type(error).__name__, error)
            else:
                finished += deleted_here
        return finished

    def garbage(self, older_than: timedelta = STRAY) -> Garbage:
        """Return what `collect_garbage` would delete."""
        strays: dict[str, int] = {}
        limit = datetime.now(UTC) - older_than
        for page in obstore.list(self.store, "sha256"):
            old = {entry["path"].rpartition("/")[2]: entry["size"] for entry in page if entry["last_modified"] < limit}
            strays |= {sha256: old[sha256] for sha256 in self.references.unknown(list(old))}
        return Garbage(self.references.free(), strays)

    def collect_garbage(self, older_than: timedelta = STRAY) -> Garbage:
        """Delete every blob that no row names, and every file that no row is about; returns what was found.

        A writer that brings the same content meanwhile waits until it is gone, and stores it again.
        """
        found = self.garbage(older_than)
        for sha256, size in found.strays.items():
            self.references.mark_unknown(sha256, size)
        self.collect()
        return found

    def sweep_temporaries(self, older_than: timedelta = timedelta(days=1)) -> int:
        """Delete the temporary objects of uploads that were never finished. Returns how many.

        The age counts from the last byte, so that a slow upload is never one of them.
        """
        limit = datetime.now(UTC) - older_than
        if self.root is not None:
            return self._sweep_folder("tmp", "*", limit.timestamp())
        old = [
            entry["path"]
            for page in obstore.list(self.store, "tmp")
            for entry in page
            if entry["last_modified"] < limit
        ]
        for path in old:
            self.discard(path)
        return len(old)

    def sweep_parts(self, named: Callable[[list[str]], set[str]], older_than: timedelta = timedelta(days=1)) -> int:
        """Delete old parts of uploads that no row names. Returns how many. named: returns those of the names that a row has."""
        limit, swept = datetime.now(UTC) - older_than, 0
        for page in obstore.list(self.store, PARTS):
            old = [entry["path"] for entry in page if entry["last_modified"] < limit]
            strays = set(old) - named(old) if old else set[str]()
            for path in strays:
                self.discard(path)
            swept += len(strays)
        return swept if self.root is None else swept + self._sweep_folder(PARTS, f"*{HALF}", limit.timestamp())

    def _sweep_folder(self, folder: str, pattern: str, limit: float) -> int:
        """Delete old files of a folder, the halves included that the store's own listing does not show."""
        assert self.root is not None
        swept = 0
        for path in (self.root / folder).glob(pattern):
            with suppress(FileNotFoundError):  # its writer has just finished it
                if path.stat().st_mtime < limit:
                    path.unlink()
                    swept += 1
        return swept


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _pieces_of(path: Path) -> Iterator[bytes]:
    with open(path, "rb", buffering=0) as file:
        while chunk := file.read(CHUNK):
            yield chunk


def _link(source: Path, target: Path) -> bool:
    try:
        os.link(source, target)
    except OSError:
        return False
    return True
