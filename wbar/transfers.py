"""Uploads and downloads: streamed, digests sent along and verified, downloads that go on after an interruption."""

import base64
import hashlib
import os
import tarfile
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from wbar.errors import DigestMismatch, RangeNotSatisfiable

if TYPE_CHECKING:
    from wbar.client import Client

CHUNK = 1024 * 1024
Step = Callable[[int, int], None]  # bytes done, bytes in all


def sha256_of(path: Path) -> str:
    """Return the sha256 of a file, in hex."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def chunks(path: Path, step: Step | None) -> Iterator[bytes]:
    """Yield a file in pieces of CHUNK bytes; step: called after each with the bytes done and the bytes in all."""
    total, done = path.stat().st_size, 0
    with open(path, "rb") as file:
        while chunk := file.read(CHUNK):
            yield chunk
            done += len(chunk)
            if step is not None:
                step(done, total)


def upload_headers(path: Path, idempotency_key: str | None) -> dict[str, str]:
    """Return the headers of an upload: its length, its sha256 (RFC 9530), and the idempotency key."""
    digest = base64.b64encode(bytes.fromhex(sha256_of(path))).decode()
    headers = {
        "Content-Type": "application/octet-stream",
        "Content-Length": str(path.stat().st_size),
        "Repr-Digest": f"sha-256=:{digest}:",
    }
    return headers | ({"Idempotency-Key": idempotency_key} if idempotency_key else {})


@contextmanager
def as_archive(path: Path) -> Iterator[Path]:
    """Yield the file itself or, for a folder, a temporary tar whose bytes depend on names and contents alone."""
    if not path.is_dir():
        yield path
        return
    with tempfile.NamedTemporaryFile(suffix=".tar") as file:
        with tarfile.open(fileobj=file, mode="w") as archive:
            for child in sorted(path.rglob("*")):
                entry = tarfile.TarInfo(child.relative_to(path).as_posix())
                if child.is_file() and not child.is_symlink():
                    entry.size = child.stat().st_size
                    with open(child, "rb") as content:
                        archive.addfile(entry, content)
        file.flush()
        yield Path(file.name)


def download(client: "Client", path: str, target: Path, step: Step | None) -> Path:
    """Download to `target`: first to `<target>.part`, which is continued with a range where it exists, then verified
    and renamed.

    step: called after each piece with the bytes done and the bytes in all.

    Raises DigestMismatch (the part is deleted), Unreachable (the part is kept for the next try), or the service's
    refusal.
    """
    part, mark = target.with_name(f"{target.name}.part"), target.with_name(f"{target.name}.part.etag")
    target.parent.mkdir(parents=True, exist_ok=True)
    headers: dict[str, str] = {}
    if part.exists() and mark.exists() and part.stat().st_size > 0:
        headers = {"Range": f"bytes={part.stat().st_size}-", "If-Range": mark.read_text()}
    try:
        etag = _receive(client, path, headers, part, mark, step)
    except RangeNotSatisfiable:
        # The part is as long as the content or longer: cheaper to begin again than to guess.
        part.unlink()
        etag = _receive(client, path, {}, part, mark, step)
    expected, received = etag.strip('"'), sha256_of(part)
    mark.unlink(missing_ok=True)
    if received != expected:
        part.unlink()
        raise DigestMismatch(
            f"the download has sha-256 {received}, the service says {expected}: it was thrown away, try again"
        )
    os.replace(part, target)
    return target


def _receive(client: "Client", path: str, headers: dict[str, str], part: Path, mark: Path, step: Step | None) -> str:
    """Append to `part` or write it anew, as the service answers; returns the ETag."""
    with client.stream(path, headers) as response:
        etag: str = (response.history or [response])[0].headers["etag"]  # a bucket has another one
        mark.write_text(etag)
        resumed = response.status_code == 206
        done = part.stat().st_size if resumed else 0
        total = done + int(response.headers["content-length"])
        with open(part, "ab" if resumed else "wb") as file:
            for chunk in response.iter_bytes(CHUNK):
                file.write(chunk)
                done += len(chunk)
                if step is not None:
                    step(done, total)
            file.flush()
            os.fsync(file.fileno())
    return etag
