"""What uploads and downloads need of files: digests, headers, archives. The transfers themselves are the client's."""

import base64
import hashlib
import tarfile
import tempfile
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from pathlib import Path

CHUNK = 1024 * 1024
Step = Callable[[int, int], None]  # bytes done, bytes in all


def sha256_of(path: Path) -> str:
    """Return the sha256 of a file, in hex."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def upload_headers(path: Path, idempotency_key: str) -> dict[str, str]:
    """Return the headers of an upload: its length, its sha256 (RFC 9530), and the idempotency key."""
    digest = base64.b64encode(bytes.fromhex(sha256_of(path))).decode()
    return {
        "Content-Type": "application/octet-stream",
        "Content-Length": str(path.stat().st_size),
        "Repr-Digest": f"sha-256=:{digest}:",
        "Idempotency-Key": idempotency_key,
    }


def archived(path: Path) -> AbstractContextManager[Path]:
    """Return a context that yields the file itself or, for a folder, a temporary tar whose bytes depend on names and
    contents alone. The tar is written before this returns.
    """
    if not path.is_dir():
        return nullcontext(path)
    file = tempfile.NamedTemporaryFile(suffix=".tar")  # noqa: SIM115  # closed, and so deleted, by the context
    try:
        with tarfile.open(fileobj=file, mode="w") as archive:
            for child in sorted(path.rglob("*")):
                entry = tarfile.TarInfo(child.relative_to(path).as_posix())
                if child.is_file() and not child.is_symlink():
                    entry.size = child.stat().st_size
                    with open(child, "rb") as content:
                        archive.addfile(entry, content)
        file.flush()
    except BaseException:
        file.close()
        raise
    return _named(file)


@contextmanager
def _named(file: "tempfile._TemporaryFileWrapper[bytes]") -> Iterator[Path]:
    with file:
        yield Path(file.name)
