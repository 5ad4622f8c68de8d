"""POST to a URL that a stranger gave: only to addresses that may be reached, bounded in time and size, without redirects.

A name is looked up once. Every address that it has is checked, and one of those is dialled, as a number: an answer of the
name server that changes afterwards changes nothing. The URL's name stays in the Host header and in TLS, whose certificate is
checked against it. No proxy of the environment is used.
"""

import queue
import socket
import ssl
import threading
import time
from collections.abc import Callable, Iterable
from contextlib import suppress
from dataclasses import dataclass
from urllib.parse import urlsplit

import httpcore
import httpx

from wbar_store.addresses import Reach

MOST_BYTES = 64 * 1024  # of an answer, its head included
MOST_ADDRESSES = 4  # that are tried, of a name that has more
MOST_RETRY_AFTER = 3600.0

Resolver = Callable[[str, int], list[str]]
SocketOption = tuple[int, int, int] | tuple[int, int, bytes | bytearray] | tuple[int, int, None, int]


class NotSent(Exception):
    """Raised with a sentence for the webhook's owner where no answer came."""


@dataclass(frozen=True)
class Answer:
    """The answer to a POST. retry_after: seconds that the receiver asks for, at most an hour."""

    status: int
    retry_after: float = 0.0


def resolve(host: str, port: int) -> list[str]:
    """Return the addresses of a name, or of a number in any of its notations. Raises OSError, UnicodeError."""
    found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
    return list(dict.fromkeys(str(address[0]) for *_, address in found))


class GuardedPost:
    """Sends POST requests to what `reach` lets them go to. seconds: for one of them, from its look-up to its answer."""

    def __init__(self, reach: Reach, seconds: float, resolver: Resolver = resolve) -> None:
        self._reach, self._seconds, self._resolver = reach, seconds, resolver
        self._tls = httpx.create_ssl_context()  # SSL_CERT_FILE names another store of certificates

    def send(self, url: str, headers: dict[str, str], body: bytes) -> Answer:
        """Send one request on a connection of its own. Raises NotSent."""
        parts = urlsplit(url)
        deadline = time.monotonic() + self._seconds
        dialler = _Dialler(self._reach, self._resolver, parts.scheme == "https", deadline)
        limits = dict.fromkeys(("connect", "read", "write", "pool"), self._seconds)
        named = [("Host", parts.netloc.rpartition("@")[2]), *headers.items()]
        try:
            with (
                httpcore.ConnectionPool(self._tls, network_backend=dialler) as pool,
                pool.stream("POST", url, headers=named, content=body, extensions={"timeout": limits})
                as answer,
            ):  # fmt: skip
                with suppress(httpcore.NetworkError, httpcore.TimeoutException, httpcore.ProtocolError, NotSent):
                    for _ in answer.iter_stream():  # some servers are upset by a client that does not listen
                        pass
                return Answer(answer.status, _retry_after(answer.headers))
        except httpcore.TimeoutException:
            raise NotSent(f"no answer within {self._seconds:g} s") from None
        except (httpcore.NetworkError, httpcore.ProtocolError, httpcore.UnsupportedProtocol) as error:
            raise NotSent(f"{type(error).__name__}: {(str(error).splitlines() or ['no connection'])[0]}") from None


class _Dialler(httpcore.NetworkBackend):
    """Makes the connection of one request."""

    def __init__(self, reach: Reach, resolver: Resolver, secure: bool, deadline: float) -> None:
        self._reach, self._resolver, self._secure, self._deadline = reach, resolver, secure, deadline
        self._sockets = httpcore.SyncBackend()

    def connect_tcp(
        self,
        host: str,
        port: int,
        timeout: float | None = None,  # noqa: ARG002  # the deadline is what holds
        local_address: str | None = None,  # noqa: ARG002
        socket_options: Iterable[SocketOption] | None = None,  # noqa: ARG002
    ) -> httpcore.NetworkStream:
        """Look the name up, check every address, and connect to the first that answers. Raises NotSent."""
        addresses = self._look_up(host, port)
        for address in addresses:
            refusal = self._reach.refusal(address)
            if refusal is not None:
                raise NotSent(f"{host}: {refusal}")
            if not self._secure and not self._reach.allows(address):
                raise NotSent("http is for networks that WBAR_WEBHOOKS_ALLOW names: use https")
        tried = addresses[:MOST_ADDRESSES]
        for left, address in zip(range(len(tried), 0, -1), tried, strict=True):
            try:
                share = (
                    _remaining(self._deadline) / left
                )  # an address that does not answer leaves time for the next one
                return _Bounded(self._sockets.connect_tcp(address, port, share), self._deadline)
            except (httpcore.ConnectError, httpcore.ConnectTimeout):
                if left == 1:
                    raise
        raise NotSent(f"{host} has no address")

    def _look_up(self, host: str, port: int) -> list[str]:
        """Look a name up within the deadline: the system's resolver itself has no limit that could be given to it."""
        found: queue.SimpleQueue[list[str] | Exception] = queue.SimpleQueue()

        def look() -> None:
            try:
                found.put(self._resolver(host, port))
            except (OSError, UnicodeError) as error:
                found.put(error)

        threading.Thread(target=look, name="look-up", daemon=True).start()
        try:
            answer = found.get(timeout=_remaining(self._deadline))
        except queue.Empty:
            raise NotSent(f"{host} could not be looked up in time") from None
        if isinstance(answer, Exception):
            raise NotSent(f"{host} could not be looked up ({getattr(answer, 'strerror', None) or answer})")
        return answer


class _Bounded(httpcore.NetworkStream):
    """A stream of which all reads and writes together end at the deadline, and all reads together after MOST_BYTES."""

    def __init__(self, stream: httpcore.NetworkStream, deadline: float) -> None:
        self._stream, self._deadline, self._room = stream, deadline, MOST_BYTES

    def read(self, max_bytes: int, timeout: float | None = None) -> bytes:  # noqa: ARG002
        """Read what there is. Raises NotSent where there is too much."""
        if self._room <= 0:
            raise NotSent(f"an answer of more than {MOST_BYTES} bytes")
        part = self._stream.read(min(max_bytes, self._room), _remaining(self._deadline))
        self._room -= len(part)
        return part

    def write(self, buffer: bytes, timeout: float | None = None) -> None:  # noqa: ARG002
        """Write all of the buffer."""
        self._stream.write(buffer, _remaining(self._deadline))

    def close(self) -> None:
        self._stream.close()

    def start_tls(
        self,
        ssl_context: ssl.SSLContext,
        server_hostname: str | None = None,
        timeout: float | None = None,  # noqa: ARG002
    ) -> httpcore.NetworkStream:
        """Go on in TLS, within the same bounds."""
        secured = self._stream.start_tls(ssl_context, server_hostname, _remaining(self._deadline))
        return _Bounded(secured, self._deadline)

    def get_extra_info(self, info: str) -> object:
        """Return what the socket's stream says of itself."""
        return self._stream.get_extra_info(info)


def _remaining(deadline: float) -> float:
    """Return the seconds that are left. Raises httpcore's ReadTimeout where none are."""
    left = deadline - time.monotonic()
    if left <= 0:
        raise httpcore.ReadTimeout("the time for this request is over")
    return left


def _retry_after(headers: Iterable[tuple[bytes, bytes]]) -> float:
    for name, value in headers:
        if name.lower() == b"retry-after" and value.isdigit() and len(value) < 10:
            return min(float(value), MOST_RETRY_AFTER)
    return 0.0
