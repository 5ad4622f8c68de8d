"""The limits of a connection, below HTTP: what a request's head may weigh, and how long a client may keep us waiting.

uvicorn's protocol with timers around it. A head must be small and come soon, a body must keep coming, and an answer must be
taken; a connection that does none of it is closed, so that slow clients do not add up. A client that waits for us, because
the disk is slow or a job's events have a pause, is not slow.
"""

from asyncio import TimerHandle
from http import HTTPStatus

from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from wbar_service.headers import new_request_id

HEAD_BYTES = 64 * 1024  # request line and headers
READ_BYTES = 256 * 1024  # that come from a socket at once
# In units of the client timeout:
HEAD = 1.0  # from a request's first byte, or the connection, to the end of its headers
BODY = 3.0  # without a byte of a body that is not complete
UNREAD = 1.5  # in which the rest of a body that was refused is still taken, so that its sender sees the answer
WRITE = 6.0  # in which a client takes nothing of what is sent to it


def protocol(client_timeout: float) -> type["LimitedProtocol"]:
    """Return the protocol class with this client timeout, in seconds."""
    return type("LimitedProtocol", (LimitedProtocol,), {"client_timeout": client_timeout})


class LimitedProtocol(HttpToolsProtocol):
    """uvicorn's HTTP protocol, with limits on its clients.

    One timer runs at a time for what the client owes us, and one for what it does not take.
    """

    client_timeout = 20.0  # seconds
    _owed: TimerHandle | None = None
    _untaken: TimerHandle | None = None
    _head = 0  # bytes of the head so far; none of a body
    _in_head = True
    _refused = False
    _aside = 0  # bytes since a piece of the body, while one is open: its framing, and what may follow it
    _unread = False  # whether the rest of a refused body is being taken

    def connection_made(self, transport) -> None:  # type: ignore[no-untyped-def]  # as the base has it
        """Expect a request from now on."""
        super().connection_made(transport)
        self._expect(HEAD)

    def connection_lost(self, exc: Exception | None) -> None:
        """End the timers."""
        self._expect(None)
        self._end_untaken()
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        """Parse what came; refuse a head that grows too large before it has ended."""
        if self._refused:
            return
        if self._in_head:
            self._head += len(data)
        else:
            self._aside += len(data)
        super().data_received(data)
        if self._in_head and self._head > HEAD_BYTES:
            self._refuse(HTTPStatus.REQUEST_HEADER_FIELDS_TOO_LARGE)
        elif self._aside > HEAD_BYTES + READ_BYTES:
            self._refused = True
            self.transport.abort()  # trailers without an end, after an answer that may have begun
        elif self._owed is None and self._idle():
            self._expect(HEAD)  # an empty line begins no request, and must not keep the connection open

    def _idle(self) -> bool:
        """Return whether no request is at work."""
        return self.cycle is None or (self.cycle.response_complete and not self.pipeline)

    def on_header(self, name: bytes, value: bytes) -> None:
        """Take a header; a trailer, which follows a body, is dropped."""
        if self._in_head:
            super().on_header(name, value)

    def send_400_response(self, msg: str) -> None:  # noqa: ARG002  # uvicorn says it in plain text
        """Refuse what is not HTTP."""
        self._refuse(HTTPStatus.BAD_REQUEST)

    def on_message_begin(self) -> None:
        """Expect the rest of the head."""
        super().on_message_begin()
        self._in_head = True
        self._expect(HEAD)

    def on_headers_complete(self) -> None:
        """Begin the request, unless its head is too large, and expect its body."""
        if self._refused:
            return
        self._in_head, self._head, self._aside, self._unread = False, 0, 0, False
        if len(self.url) + sum(len(name) + len(value) for name, value in self.headers) > HEAD_BYTES:
            self._refuse(HTTPStatus.REQUEST_HEADER_FIELDS_TOO_LARGE)
            return
        self._expect(BODY)
        super().on_headers_complete()

    def on_body(self, body: bytes) -> None:
        """Take a piece of the body, and expect the next one."""
        if self._refused:
            return
        super().on_body(body)
        self._aside = 0
        if not self.cycle.response_complete:
            # While we do not read, the client cannot send: `resume_reading` is followed by the next bytes, or by the timer.
            self._expect(BODY)
        elif not self._unread:
            self._unread = True  # once: a body that is only dropped does not earn more time by coming
            self._expect(UNREAD)

    def on_message_complete(self) -> None:
        """Take the end of the request: the client owes nothing more."""
        if self._refused:
            return
        self._expect(None)
        super().on_message_complete()

    def pause_writing(self) -> None:
        """Note that the client does not take what is sent to it."""
        super().pause_writing()
        self._untaken = self.loop.call_later(WRITE * self.client_timeout, self.transport.abort)

    def resume_writing(self) -> None:
        """Note that the client takes what is sent to it again."""
        self._end_untaken()
        super().resume_writing()

    def _end_untaken(self) -> None:
        if self._untaken is not None:
            self._untaken.cancel()
            self._untaken = None

    def _expect(self, timeouts: float | None) -> None:
        """Close the connection unless the client goes on within so many timeouts; None: nothing is expected of it."""
        if self._owed is not None:
            self._owed.cancel()
        self._owed = None
        if timeouts is not None:
            self._owed = self.loop.call_later(timeouts * self.client_timeout, self._too_slow)

    def _too_slow(self) -> None:
        self._owed = None
        if self.flow.read_paused:  # it is we who do not read
            self._expect(BODY)
        elif self._in_head and self._head == 0:
            self.transport.close()  # nothing was asked
        elif self._in_head:
            self._refuse(HTTPStatus.REQUEST_TIMEOUT)
        else:
            self.transport.abort()  # half a request: its handler sees that the client is gone

    def _refuse(self, status: HTTPStatus) -> None:
        """Answer where no handler runs yet, and close the connection."""
        if self._refused:
            return
        self._refused = True
        self._expect(None)
        code = status.phrase.lower().replace(" ", "_")
        detail = {
            HTTPStatus.REQUEST_HEADER_FIELDS_TOO_LARGE: f"the request line and headers have more than {HEAD_BYTES} bytes",
            HTTPStatus.REQUEST_TIMEOUT: f"the headers did not end within {HEAD * self.client_timeout:g} s",
            HTTPStatus.BAD_REQUEST: "this cannot be read as HTTP/1.1: look at the method, the headers and the body's length",
        }[status]
        body = (
            f'{{"type":"urn:wbar:problem:{code}","title":"{status.phrase}","status":{status.value},'
            f'"detail":"{detail}","code":"{code}"}}'
        ).encode()
        head = (
            f"HTTP/1.1 {status.value} {status.phrase}\r\ncontent-type: application/problem+json\r\n"
            f"content-length: {len(body)}\r\nx-request-id: {new_request_id()}\r\nconnection: close\r\n\r\n"
        ).encode()
        self.transport.write(head + body)
        self.transport.close()
