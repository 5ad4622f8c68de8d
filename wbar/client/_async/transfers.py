"""The bytes of files, both ways: every upload goes through `upload`, every download through `download`."""

import os
from collections.abc import AsyncIterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from anyio import sleep
from anyio.to_thread import run_sync as in_thread

from wbar.client._async.resource import given, new_key
from wbar.errors import DigestMismatch, RangeNotSatisfiable, Unreachable
from wbar.resumable_upload import RESUMABLE_BYTES, Sending
from wbar.transfers import CHUNK, Step, sha256_of, upload_headers

if TYPE_CHECKING:
    from wbar.client._async.client import AsyncClient


async def chunks(path: Path, step: Step | None) -> AsyncIterator[bytes]:
    """Yield a file in pieces of CHUNK bytes; step: called after each with the bytes done and the bytes in all."""
    total, done = path.stat().st_size, 0
    with open(path, "rb") as file:
        while chunk := await in_thread(file.read, CHUNK):
            yield chunk
            done += len(chunk)
            if step is not None:
                step(done, total)


async def upload(
    client: "AsyncClient",
    target: str,
    path: Path,
    params: dict[str, Any],
    step: Step | None = None,
    idempotency_key: str | None = None,
) -> bytes:
    """Send a file to `target`, with its sha256, and return what the service answers: the object that it made of it.

    A lost connection makes a small file begin again; with the idempotency key one object is made, however often it does.
    From RESUMABLE_BYTES on a file is sent in parts (tus), and goes on where it was, also in another process.
    """
    if path.stat().st_size >= RESUMABLE_BYTES:
        return await _upload_in_parts(client, target, path, params, step, idempotency_key)
    headers = await in_thread(upload_headers, path, idempotency_key or new_key())
    answer = await client.request(
        "POST", target, params=given(params), content=lambda: chunks(path, step), headers=headers
    )
    return answer.content


async def _upload_in_parts(
    client: "AsyncClient", target: str, path: Path, params: dict[str, Any], step: Step | None, key: str | None
) -> bytes:
    sending = Sending(path, target, given(params), service=client.url, idempotency_key=key, step=step)
    request = await in_thread(sending.begin)
    while request is not None:
        await sleep(request.after)
        answer = await client.exchange(request)
        request = await in_thread(sending.go_on, answer)
    assert sending.answer is not None
    return sending.answer.content


async def download(client: "AsyncClient", path: str, target: Path, step: Step | None) -> Path:
    """Download to `target`: first to `<target>.part`, which is continued with a range where it exists, then verified
    and renamed.

    step: called at the beginning and after each piece, with the bytes done and the bytes in all.

    A connection that breaks is taken up again as long as it brings something. Raises DigestMismatch (the part is
    deleted), Unreachable (the part is kept for the next try), or the service's refusal.
    """
    part, mark = target.with_name(f"{target.name}.part"), target.with_name(f"{target.name}.part.etag")
    target.parent.mkdir(parents=True, exist_ok=True)
    while True:
        before = _size(part)
        headers = {"Range": f"bytes={before}-", "If-Range": mark.read_text()} if before and mark.exists() else {}
        try:
            etag = await _receive(client, path, headers, part, mark, step)
        except RangeNotSatisfiable:
            # The part is as long as the content or longer: cheaper to begin again than to guess.
            part.unlink()
        except Unreachable:
            if _size(part) <= before:
                raise
        else:
            break
    expected, received = etag.strip('"'), await in_thread(sha256_of, part)
    mark.unlink(missing_ok=True)
    if received != expected:
        part.unlink()
        raise DigestMismatch(
            f"the download has sha-256 {received}, the service says {expected}: it was thrown away, try again"
        )
    os.replace(part, target)
    return target


def _size(path: Path) -> int:
    return path.stat().st_size if path.exists() else 0


async def _receive(
    client: "AsyncClient", path: str, headers: dict[str, str], part: Path, mark: Path, step: Step | None
) -> str:
    """Append to `part` or write it anew, as the service answers; returns the ETag."""
    async with client.stream(path, headers) as response:
        etag: str = (response.history or [response])[0].headers["etag"]  # a bucket has another one
        mark.write_text(etag)
        resumed = response.status_code == 206
        done = part.stat().st_size if resumed else 0
        total = done + int(response.headers["content-length"])
        with open(part, "ab" if resumed else "wb") as file:
            if step is not None:
                step(done, total)
            # As it comes, not in pieces of a size: what came before the connection broke is kept.
            async for chunk in response.aiter_bytes():
                file.write(chunk)
                done += len(chunk)
                if step is not None:
                    step(done, total)
            file.flush()
            await in_thread(os.fsync, file.fileno())
    return etag
