"""Sending a file in parts that survive a lost connection, a restarted service and a restarted laptop (tus 1.0.0).

This holds no connection: a `Sending` says which request comes next and is told how it was answered, so that a client with
threads and one with an event loop do the same. What has to be remembered is the upload's id alone, in a small file of the
user's, by the content's digest and the service's address; how far the upload has come, the service knows.

sending = Sending(path, "/v1/checkpoints", {"name": path.name}, service=url)
request = sending.begin()
while request is not None:
    sleep(request.after)
    ...                                     # send it; an Answer, or NoAnswer where no whole answer came
    request = sending.go_on(answer)
sending.answer.content                      # of the POST that created the checkpoint
"""

import base64
import hashlib
import json
import os
import random
import secrets
import time
import zlib
from collections.abc import Callable, Generator, Mapping
from contextlib import suppress
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path

from wbar import config
from wbar.errors import ChecksumMismatch, DigestMismatch, Unreachable, UploadUsed, refusal
from wbar.transfers import Step, sha256_of
from wbar.uploads import CONTENT_TYPE, TUS_VERSION, encode_metadata

MIB = 1024 * 1024
RESUMABLE_BYTES = 64 * MIB  # files from this size on are sent in parts
PATIENCE = 300.0  # seconds without an answer, after which the service counts as unreachable
FIRST_CHUNK, LEAST_CHUNK, MOST_CHUNK = 4 * MIB, MIB // 4, 32 * MIB
FAST, SLOW = 2.0, 8.0  # seconds for a chunk, below and above which the next one is larger and smaller
LONGEST_WAIT = 15.0
TRIES = 5  # of a chunk that arrives with another checksum, of an upload that is not there any more
FORGOTTEN = 30 * 24 * 3600.0  # seconds; no upload lives longer than that without being asked about
AWAY = (500, 502, 503, 504)
JOIN_BYTES_PER_SECOND = (
    20 * MIB
)  # at which a slow service reads the whole upload once, before it answers the last request


@dataclass(frozen=True)
class Request:
    """The request to send next. after: seconds to wait before; timeout: seconds for its answer, where it may take long."""

    method: str
    path: str
    headers: dict[str, str]
    params: dict[str, str | int] = field(default_factory=dict)
    content: bytes = b""
    after: float = 0.0
    timeout: float | None = None


@dataclass(frozen=True)
class Answer:
    """The answer to a request, whatever its status. headers: by name, case-insensitive, as HTTP libraries have them."""

    status: int
    headers: Mapping[str, str]
    content: bytes


@dataclass(frozen=True)
class NoAnswer:
    """The connection failed before the whole answer had come. reason: in words."""

    reason: str


Conversation = Generator[Request, Answer | NoAnswer, Answer]


class Sending:
    """A file on its way to become a checkpoint or dataset. answer: of the request that created it, once it is done."""

    def __init__(
        self,
        path: Path,
        resource: str,
        params: Mapping[str, str | int],
        *,
        service: str,
        idempotency_key: str | None = None,
        step: Step | None = None,
        patience: float = PATIENCE,
    ) -> None:
        """Prepare to send the file.

        resource: `/v1/checkpoints` or `/v1/datasets`; params: of the POST to it.
        service: its address, which the upload is remembered by.
        step: called after each chunk with the bytes done and the bytes in all.
        patience: seconds without an answer that are borne.
        """
        self.answer: Answer | None = None
        self._path, self._size = path, path.stat().st_size
        self._resource, self._params, self._key = resource, dict(params), idempotency_key
        self._service, self._step, self._patience = service, step, patience
        self._chunk = FIRST_CHUNK
        self._crc32 = False
        self._conversation: Conversation | None = None

    def begin(self) -> Request | None:
        """Return the first request, after reading the whole file once for its digest."""
        self._sha256 = sha256_of(self._path)
        self._memory = Memory.of(self._service, self._sha256, self._size)
        self._conversation = self._converse()
        return next(self._conversation)

    def go_on(self, answer: Answer | NoAnswer) -> Request | None:
        """Return the request that follows this answer; None when all is done.

        Raises Unreachable when patience is over, DigestMismatch, and whatever the service refuses. What has arrived stays
        there, and the next Sending of the same content goes on, unless the digest was wrong.
        """
        assert self._conversation is not None
        try:
            return self._conversation.send(answer)
        except StopIteration as done:
            self.answer = done.value
            return None

    def _converse(self) -> Conversation:
        for _ in range(TRIES):
            upload, offset = yield from self._found()
            if upload is None:
                upload, offset = (yield from self._created()), 0
            arrived = yield from self._sent(upload, offset)
            if not arrived:
                self._memory.forget()
                continue  # it expired, or was deleted: from the start
            answer = yield from self._named(upload)
            if answer is not None:
                self._memory.forget()
                return answer
        raise UploadUsed(f"{self._path.name}: {TRIES} uploads were taken away before they were finished")

    def _found(self) -> Generator[Request, Answer | NoAnswer, tuple[str | None, int]]:
        """Return the upload that was begun before, and how far it has come."""
        upload = self._memory.read()
        if upload is None:
            return None, 0
        answer = yield from self._ask(Request("HEAD", f"/v1/uploads/{upload}", _tus()))
        self._learn(answer)
        if answer.status == 200 and answer.headers.get("Upload-Length") == str(self._size):
            return upload, int(answer.headers["Upload-Offset"])
        if answer.status not in (200, 404, 410):
            raise refusal(answer.status, answer.content)
        self._memory.forget()
        return None, 0

    def _created(self) -> Generator[Request, Answer | NoAnswer, str]:
        headers = _tus() | {
            "Upload-Length": str(self._size),
            "Upload-Metadata": encode_metadata({"filename": self._path.name, "sha256": self._sha256}),
            "Idempotency-Key": secrets.token_hex(16),  # a request whose answer was lost creates no second one
        }
        answer = yield from self._ask(Request("POST", "/v1/uploads", headers))
        if answer.status != 201:
            raise refusal(answer.status, answer.content)
        self._learn(answer)
        upload = answer.headers["Location"].rstrip("/").rpartition("/")[2]
        self._memory.write(upload)
        return upload

    def _sent(self, upload: str, offset: int) -> Generator[Request, Answer | NoAnswer, bool]:
        """Send the bytes from `offset` on; returns False where the upload is not there any more."""
        wrong = 0
        while offset < self._size:
            if self._step is not None:
                self._step(offset, self._size)
            began = time.monotonic()
            answer = yield from self._ask(
                self._patch(upload, offset), smaller=partial(self._smaller_patch, upload, offset)
            )
            if answer.status == 204:
                offset, wrong = int(answer.headers["Upload-Offset"]), 0
                self._chunk = _next_length(self._chunk, time.monotonic() - began)
            elif answer.status == 409 and "Upload-Offset" in answer.headers:
                offset = int(
                    answer.headers["Upload-Offset"]
                )  # it had arrived, and the answer had not; or another sends too
            elif answer.status == ChecksumMismatch.status and wrong < TRIES:
                wrong += 1
            elif answer.status == 400 and self._crc32:
                self._crc32 = False  # an API process of a version before, while an upgrade rolls through
            elif answer.status in (404, 410):
                return False
            else:
                raise refusal(answer.status, answer.content)
        if self._step is not None:
            self._step(self._size, self._size)
        return True

    def _patch(self, upload: str, offset: int) -> Request:
        chunk = self._read(offset, self._chunk)
        headers = _tus() | {
            "Content-Type": CONTENT_TYPE,
            "Upload-Offset": str(offset),
            "Upload-Checksum": self._checksum(chunk),
        }
        return Request("PATCH", f"/v1/uploads/{upload}", headers, content=chunk)

    def _learn(self, answer: Answer) -> None:
        """Note by what the service checks a chunk: a version before 0.7 does not know the cheaper checksum."""
        self._crc32 = "crc32" in answer.headers.get("Tus-Checksum-Algorithm", "").split(",")

    def _checksum(self, chunk: bytes) -> str:
        """Return the checksum of a chunk; the sha-256 of the whole is verified at the end whatever this one finds."""
        if self._crc32:
            return f"crc32 {base64.b64encode(zlib.crc32(chunk).to_bytes(4, 'big')).decode()}"
        return f"sha256 {base64.b64encode(hashlib.sha256(chunk).digest()).decode()}"

    def _smaller_patch(self, upload: str, offset: int) -> Request:
        """Return less at a time: of a connection that breaks again and again, something must come through."""
        self._chunk = max(self._chunk // 2, LEAST_CHUNK)
        return self._patch(upload, offset)

    def _named(self, upload: str) -> Generator[Request, Answer | NoAnswer, Answer | None]:
        """Have the service make something of the upload; returns None where something was made of it before."""
        headers = {
            "Content-Type": "application/json",
            "Idempotency-Key": self._key or f"made of {upload}",  # a Sending that died after this gets the same answer
        }
        body = json.dumps({"upload": upload}).encode()
        timeout = 60 + self._size / JOIN_BYTES_PER_SECOND
        answer = yield from self._ask(Request("POST", self._resource, headers, self._params, body, timeout=timeout))
        if answer.status == 201:
            return answer
        error = refusal(answer.status, answer.content)
        if isinstance(error, UploadUsed):
            self._memory.forget()
            return None
        if isinstance(error, DigestMismatch):
            self._memory.forget()
            yield from self._ask(Request("DELETE", f"/v1/uploads/{upload}", _tus()))
        raise error

    def _ask(
        self, request: Request, smaller: Callable[[], Request] | None = None
    ) -> Generator[Request, Answer | NoAnswer, Answer]:
        """Send a request, every one of which may be sent twice, until it is answered. smaller: what to send instead then."""
        began, tries = time.monotonic(), 0
        while True:
            answer = yield request
            reason = _away(answer)
            if reason is None and isinstance(answer, Answer):
                if answer.status != 429 or refusal(429, answer.content).code != "rate_limited":
                    return answer
                request = replace(request, after=float(answer.headers.get("Retry-After", 5)))
                began = time.monotonic() + request.after
                continue
            if time.monotonic() - began > self._patience:
                raise Unreachable(
                    f"no answer from {self._service} for {self._patience:g} s ({reason}): what has arrived is kept there; send "
                    "the same file again to go on"
                )
            tries += 1
            longest = min(LONGEST_WAIT, 0.25 * 2 ** min(tries, 10))
            request = replace(smaller() if smaller else request, after=random.uniform(longest / 2, longest))

    def _read(self, offset: int, length: int) -> bytes:
        wanted = min(length, self._size - offset)
        with open(self._path, "rb") as file:
            file.seek(offset)
            chunk = file.read(wanted)
        if len(chunk) < wanted:
            raise DigestMismatch(f"{self._path} has become shorter while it was sent: send it again")
        return chunk


def _tus() -> dict[str, str]:
    return {"Tus-Resumable": TUS_VERSION}


def _away(answer: Answer | NoAnswer) -> str | None:
    """Return why an answer says nothing about the request; None where it does."""
    if isinstance(answer, NoAnswer):
        return answer.reason
    return f"HTTP {answer.status}" if answer.status in AWAY else None


def _next_length(length: int, seconds: float) -> int:
    """Return the bytes of the next chunk: a cut connection should not cost more than a few seconds."""
    if seconds < FAST:
        return min(2 * length, MOST_CHUNK)
    return max(length // 2, LEAST_CHUNK) if seconds > SLOW else length


@dataclass(frozen=True)
class Memory:
    """The id of an upload that was begun, in a file of its own. Where it cannot be written, nothing is remembered."""

    path: Path

    @classmethod
    def of(cls, service: str, sha256: str, size: int) -> "Memory":
        """Return the memory of one content at one service. sha256, size: of the whole content, in bytes."""
        name = hashlib.sha256(f"{service.rstrip('/')} {sha256} {size}".encode()).hexdigest()
        return cls(config.state_folder() / "uploads" / f"{name}.json")

    def read(self) -> str | None:
        """Return the id; None where there is none."""
        try:
            upload = json.loads(self.path.read_text())["upload"]
        except (OSError, ValueError, KeyError, TypeError):
            return None
        return upload if isinstance(upload, str) and upload.startswith("upload_") and upload.isascii() else None

    def write(self, upload: str) -> None:
        """Remember the id, and drop what was remembered long ago."""
        temporary = self.path.with_name(f".{self.path.name}.{os.getpid()}.tmp")
        with suppress(OSError):
            self.path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
            temporary.write_text(json.dumps({"upload": upload}))
            os.replace(temporary, self.path)
            for old in self.path.parent.glob("*.json"):
                if time.time() - old.stat().st_mtime > FORGOTTEN:
                    old.unlink(missing_ok=True)

    def forget(self) -> None:
        """Remember nothing."""
        with suppress(OSError):
            self.path.unlink(missing_ok=True)
