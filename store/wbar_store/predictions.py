"""Predictions pass through the broker's Valkey: a request under its id, and its answer, each for a minute and for one reader.

    API      SET request:ID, notify a worker of ID;  BLPOP answer:ID
    worker   GETDEL request:ID;  SET alive:ID again and again while it works;  RPUSH answer:ID

A request is taken once, and is gone when its answer is read or its time is over. No row is written. An answer that does not
come although a worker has taken the request, and its `alive` has run out, never comes: that worker is gone.
"""

import json
import threading
import time
import uuid
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING

from pydantic import TypeAdapter

from wbar.predictions import Answer, Given, NotAnswered, PredictedNetwork, Wanted

if TYPE_CHECKING:
    from redis import Redis

PREFIX = "wbar:predict:"
KEPT_SECONDS = 60  # the longest that anything stays
ALIVE_MS, RENEW_SECONDS = 4000, 1.0
MOST_AT_ONCE = 4  # requests of a tenant that wait or are answered
EVERYTHING = Wanted()
_ANSWERS: TypeAdapter[Given | NotAnswered] = TypeAdapter(Answer)


class TooManyAtOnce(Exception):
    """Raised where as many requests of the tenant wait already as may."""


class NotTaken(Exception):
    """Raised where no worker took the request in time."""


class WorkerGone(Exception):
    """Raised where the worker that took the request did not answer it, and works no more."""


@dataclass(frozen=True)
class Taken:
    """A request as a worker takes it. images: files."""

    network: PredictedNetwork
    images: tuple[bytes, ...]
    wanted: Wanted


class PredictionBox:
    """The place where requests and answers lie. Raises redis.RedisError where the broker does not answer.

    broker_url: as of the settings.
    """

    def __init__(self, broker_url: str) -> None:
        self._url = broker_url.replace("redis+socket:", "unix:", 1)

    @cached_property
    def _redis(self) -> "Redis":
        from redis import Redis  # the API starts before its first prediction

        return Redis.from_url(self._url, socket_timeout=10, socket_connect_timeout=2)

    def close(self) -> None:
        if "_redis" in self.__dict__:
            self._redis.close()

    # The API's side.

    @contextmanager
    def asking(
        self, tenant: str, network: PredictedNetwork, images: Sequence[bytes], wanted: Wanted = EVERYTHING
    ) -> Iterator[str]:
        """Put a request, and yield its id; everything of it is gone after the block. Raises TooManyAtOnce."""
        name, own = uuid.uuid4().hex, f"{PREFIX}of:{tenant}"
        now = time.time()
        with self._redis.pipeline() as pipe:
            pipe.zremrangebyscore(own, 0, now - KEPT_SECONDS)  # of processes that were killed
            pipe.zadd(own, {name: now})
            pipe.zcard(own)
            pipe.expire(own, KEPT_SECONDS)
            at_once = pipe.execute()[2]
        try:
            if at_once > MOST_AT_ONCE:
                raise TooManyAtOnce
            self._redis.set(_key("request", name), _packed(network, images, wanted), ex=KEPT_SECONDS)
            yield name
        finally:
            self._redis.zrem(own, name)
            self._redis.delete(_key("request", name), _key("answer", name), _key("alive", name))

    def answer_of(self, name: str, patience: float, limit: float) -> Given | NotAnswered:
        """Wait for the answer.

        patience: seconds for a worker to take the request. limit: seconds in all.

        Raises NotTaken, WorkerGone, TimeoutError, ValidationError for the answer of a worker of another version.
        """
        began = time.monotonic()
        while time.monotonic() - began < limit:
            found = self._redis.blpop([_key("answer", name)], timeout=1)
            if found is not None:
                return _ANSWERS.validate_json(found[1])
            if self._redis.exists(_key("alive", name)):
                continue
            if not self._redis.exists(_key("request", name)):
                late = self._redis.lpop(_key("answer", name))  # it may have come between the questions
                if not isinstance(late, bytes):
                    raise WorkerGone
                return _ANSWERS.validate_json(late)
            if time.monotonic() - began > patience and self._redis.delete(_key("request", name)):
                raise NotTaken
        raise TimeoutError

    # The worker's.

    @contextmanager
    def taking(self, name: str) -> Iterator[Taken | None]:
        """Take a request, and be known to work on it for the block; yields None where it was taken, or its time is over.

        Raises ValidationError for the request of an API of another version.
        """
        alive = _key("alive", name)
        self._redis.set(
            alive, "1", px=ALIVE_MS
        )  # first: of a request that is gone, silence would say that its worker is gone
        packed = self._redis.getdel(_key("request", name))
        if packed is None:
            yield None
            return
        over = threading.Event()

        def renew() -> None:
            while not over.wait(RENEW_SECONDS):
                self._redis.set(alive, "1", px=ALIVE_MS)

        thread = threading.Thread(target=renew, name="prediction", daemon=True)
        thread.start()
        try:
            yield _unpacked(packed)  # type: ignore[arg-type]  # bytes: redis types an asynchronous answer too
        finally:
            over.set()
            thread.join()

    def answer(self, name: str, answer: Given | NotAnswered) -> None:
        """Put the answer."""
        with self._redis.pipeline() as pipe:
            pipe.rpush(_key("answer", name), answer.model_dump_json())
            pipe.expire(_key("answer", name), KEPT_SECONDS)
            pipe.execute()


def _key(what: str, name: str) -> str:
    return f"{PREFIX}{what}:{name}"


def _packed(network: PredictedNetwork, images: Sequence[bytes], wanted: Wanted) -> bytes:
    """Return a line of JSON, the network, what is wanted and the sizes of the files, and then the files."""
    head = {
        "network": network.document(),
        "wanted": wanted.model_dump(exclude_defaults=True),
        "sizes": [len(image) for image in images],
    }
    return json.dumps(head).encode() + b"\n" + b"".join(images)


def _unpacked(packed: bytes) -> Taken:
    line, _, files = packed.partition(b"\n")
    head = json.loads(line)
    images, at = list[bytes](), 0
    for size in head["sizes"]:
        images.append(files[at : at + size])
        at += size
    network = PredictedNetwork.model_validate(head["network"])
    return Taken(network, tuple(images), Wanted.model_validate(head.get("wanted", {})))
