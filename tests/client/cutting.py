"""A connection that breaks: a relay to a service that ends a connection once it has passed so many bytes on."""

import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress


class Relay:
    """Passes bytes between clients and a service. cuts: after how many bytes of a client each connection is cut, in turn."""

    def __init__(self, port: int, cuts: list[int]) -> None:
        self._to, self._cuts = port, list(cuts)
        self._listening = socket.create_server(("127.0.0.1", 0))
        self.url = f"http://127.0.0.1:{self._listening.getsockname()[1]}"
        self.cut = 0
        self._open: list[socket.socket] = []
        self._threads = [threading.Thread(target=self._accept)]
        self._threads[0].start()

    def _accept(self) -> None:
        while True:
            try:
                client, _ = self._listening.accept()
            except OSError:
                return
            service = socket.create_connection(("127.0.0.1", self._to))
            self._open += [client, service]
            left = self._cuts.pop(0) if self._cuts else None
            for source, target, bytes_left in ((client, service, left), (service, client, None)):
                thread = threading.Thread(target=self._pass_on, args=(source, target, bytes_left))
                self._threads.append(thread)
                thread.start()

    def _pass_on(self, source: socket.socket, target: socket.socket, left: int | None) -> None:
        with suppress(OSError):
            while piece := source.recv(65536 if left is None else min(65536, left)):
                target.sendall(piece)
                if left is not None:
                    left -= len(piece)
                    if left == 0:
                        self.cut += 1
                        break
        for end in (source, target):
            with suppress(OSError):
                end.shutdown(socket.SHUT_RDWR)

    def stop(self) -> None:
        with suppress(OSError):
            self._listening.shutdown(socket.SHUT_RDWR)
        self._listening.close()
        for one in self._open:
            with suppress(OSError):
                one.shutdown(socket.SHUT_RDWR)
        for thread in self._threads:
            thread.join(20)
        for one in self._open:
            one.close()


@contextmanager
def relay(port: int, cuts: list[int]) -> Iterator[Relay]:
    made = Relay(port, cuts)
    try:
        yield made
    finally:
        made.stop()
