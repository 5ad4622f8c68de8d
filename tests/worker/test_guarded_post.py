"""A POST to a stranger's URL: which address is dialled, how long it may take, how much is read."""

import ssl
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from ipaddress import ip_network
from pathlib import Path
from socket import create_server, socket

import pytest

from tests.receivers import Answering, receiver
from wbar_store.addresses import Reach
from wbar_worker import guarded_post
from wbar_worker.guarded_post import MOST_BYTES, Answer, GuardedPost, NotSent

ONE = [ip_network("127.0.0.2/32")]


def names(*answers: list[str]) -> tuple[Callable[[str, int], list[str]], list[str]]:
    """A name server that gives another answer each time, and what it was asked."""
    asked: list[str] = []

    def resolver(host: str, _port: int) -> list[str]:
        asked.append(host)
        return answers[min(len(asked), len(answers)) - 1]

    return resolver, asked


def test_a_name_is_looked_up_once_and_what_was_checked_is_dialled() -> None:
    """A name server that says 127.0.0.2 to the check and 127.0.0.1 to the connection (DNS rebinding)."""
    with receiver(host="127.0.0.2") as there, receiver(port=there.port) as inside:
        resolver, asked = names(["127.0.0.2"], ["127.0.0.1"])
        post = GuardedPost(Reach(ONE), 5, resolver)
        assert post.send(f"http://hooks.example:{there.port}/x?y=1", {"A": "b"}, b"{}") == Answer(204)
        assert asked == ["hooks.example"]
        (request,) = there.received
        assert (request.path, request.headers["host"]) == ("/x?y=1", f"hooks.example:{there.port}")
        assert (request.headers["a"], request.body) == ("b", b"{}")
        assert inside.received == []
        with pytest.raises(NotSent, match=r"hooks\.example: this is not in the public network"):
            post.send(f"http://hooks.example:{there.port}/", {}, b"")
        assert inside.received == []


@pytest.mark.parametrize("addresses", [["127.0.0.2", "127.0.0.1"], ["127.0.0.1", "127.0.0.2"], ["127.0.0.2", "::1"]])
def test_a_name_with_one_address_inside_is_not_sent_to(addresses: list[str]) -> None:
    with receiver(host="127.0.0.2") as there:
        with pytest.raises(NotSent, match="not in the public network"):
            GuardedPost(Reach(ONE), 5, names(addresses)[0]).send(f"http://x.example:{there.port}/", {}, b"")
        assert there.received == []


@pytest.mark.parametrize(
    "host",
    ["127.0.0.1", "localhost", "2130706433", "0x7f.1", "127.1", "[::ffff:127.0.0.1]", "[::1]", "0.0.0.0", "[::]"],
)
def test_this_machine_is_not_reached_under_any_of_its_names(host: str) -> None:
    with receiver() as inside:
        for scheme in ("http", "https"):
            with pytest.raises(NotSent):
                GuardedPost(Reach(ONE), 5).send(f"{scheme}://{host}:{inside.port}/", {}, b"")
        assert inside.received == []


def test_another_address_is_tried_where_one_does_not_answer() -> None:
    with receiver(host="127.0.0.3") as there:
        post = GuardedPost(Reach([ip_network("127.0.0.0/8")]), 5, names(["127.0.0.2", "127.0.0.3"])[0])
        assert post.send(f"http://x.example:{there.port}/", {}, b"").status == 204


def test_without_tls_nothing_leaves_for_the_public_network() -> None:
    with pytest.raises(NotSent, match="use https"):
        GuardedPost(Reach(ONE), 5, names(["1.1.1.1"])[0]).send("http://x.example/", {}, b"")


def test_a_proxy_of_the_environment_is_not_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    with receiver() as proxy, receiver(host="127.0.0.2") as there:
        monkeypatch.setenv("http_proxy", proxy.url)
        monkeypatch.setenv("ALL_PROXY", proxy.url)
        assert GuardedPost(Reach(ONE), 5).send(there.url, {}, b"").status == 204
        assert proxy.received == []


def test_the_receiver_says_when_to_come_back() -> None:
    for header, expected in (("7", 7.0), ("999999", 3600.0), ("-1", 0.0), ("Wed, 21 Oct 2026 07:28:00 GMT", 0.0)):
        with receiver(lambda _, said=header: Answering(503, {"Retry-After": said}), host="127.0.0.2") as there:
            assert GuardedPost(Reach(ONE), 5).send(there.url, {}, b"") == Answer(503, expected)


# Receivers that are none.

Act = Callable[[socket, threading.Event], None]


def drip(connection: socket, over: threading.Event) -> None:
    connection.sendall(b"HTTP/1.1 200 OK\r\n")
    while not over.wait(0.05):
        connection.sendall(b"X-A: b\r\n")


def flood(connection: socket, over: threading.Event) -> None:
    connection.sendall(b"HTTP/1.1 200 OK\r\n\r\n")
    while not over.is_set():
        connection.sendall(b"x" * 65536)


def flood_of_interim_answers(connection: socket, over: threading.Event) -> None:
    while not over.is_set():
        connection.sendall(b"HTTP/1.1 103 Early Hints\r\n\r\n" * 1000)


def say_nothing(_: socket, over: threading.Event) -> None:
    over.wait()


def speak_another_protocol(connection: socket, over: threading.Event) -> None:
    connection.sendall(b"SSH-2.0-OpenSSH_9.9\r\n\r\n")
    over.wait()


def hang_up(connection: socket, _: threading.Event) -> None:
    connection.recv(10)


@pytest.fixture
def acting(request: pytest.FixtureRequest) -> Iterator[str]:
    act: Act = request.param
    over, listening = threading.Event(), create_server(("127.0.0.2", 0))

    def serve() -> None:
        connection, _ = listening.accept()
        with connection, suppress(OSError):
            act(connection, over)

    thread = threading.Thread(target=serve)
    thread.start()
    yield f"127.0.0.2:{listening.getsockname()[1]}"
    over.set()
    thread.join()
    listening.close()


@pytest.mark.parametrize(
    ("acting", "scheme", "error"),
    [
        (drip, "http", "within 0.6 s|more than"),
        (say_nothing, "http", "within 0.6 s"),
        (say_nothing, "https", "within 0.6 s"),
        (flood_of_interim_answers, "http", f"more than {MOST_BYTES}"),
        (speak_another_protocol, "http", "RemoteProtocolError"),
        (speak_another_protocol, "https", "SSL"),
        (hang_up, "http", "Error"),
    ],
    indirect=["acting"],
)
def test_what_a_hostile_receiver_costs_is_bounded(acting: str, scheme: str, error: str) -> None:
    began = time.monotonic()
    with pytest.raises(NotSent, match=error):
        GuardedPost(Reach(ONE), 0.6).send(f"{scheme}://{acting}/", {}, b"{}")
    assert time.monotonic() - began < 5


@pytest.mark.parametrize("acting", [flood], indirect=True)
def test_of_a_long_answer_the_status_counts_and_little_is_read(acting: str) -> None:
    assert GuardedPost(Reach(ONE), 5).send(f"http://{acting}/", {}, b"{}") == Answer(200)


def test_a_name_server_that_does_not_answer_costs_no_more_time_than_there_is() -> None:
    over = threading.Event()

    def silent(_host: str, _port: int) -> list[str]:
        over.wait()
        return []

    with pytest.raises(NotSent, match="in time"):
        GuardedPost(Reach([]), 0.2, silent).send("https://x.example/", {}, b"")
    over.set()
    for answer, words in ((OSError(5, "no such name"), "no such name"), (UnicodeError("label too long"), "label")):

        def failing(_host: str, _port: int, error: Exception = answer) -> list[str]:
            raise error

        with pytest.raises(NotSent, match=words):
            GuardedPost(Reach([]), 5, failing).send("https://x.example/", {}, b"")
    with pytest.raises(NotSent, match="no address"):
        GuardedPost(Reach([]), 5, lambda _host, _port: []).send("https://x.example/", {}, b"")


# TLS.


@pytest.fixture(scope="module")
def certificate(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A certificate for hooks.example, and its key."""
    folder = tmp_path_factory.mktemp("tls")
    names_of_it = "subjectAltName=DNS:hooks.example"
    subprocess.run(
        ["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes", "-days", "2",
         "-subj", "/CN=hooks.example", "-addext", names_of_it, "-keyout", "key.pem", "-out", "certificate.pem"],
        cwd=folder, check=True, capture_output=True,
    )  # fmt: skip
    return folder / "certificate.pem", folder / "key.pem"


def test_the_certificate_is_checked_against_the_urls_name(
    certificate: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SSL_CERT_FILE", str(certificate[0]))
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(*certificate)
    post = GuardedPost(Reach(ONE), 5, names(["127.0.0.2"])[0])
    with receiver(host="127.0.0.2", tls=context) as there:
        assert post.send(f"https://hooks.example:{there.port}/", {}, b"{}").status == 204
        assert there.received[0].headers["host"] == f"hooks.example:{there.port}"
        for other in ("other.example", "127.0.0.2"):
            with pytest.raises(NotSent, match="CERTIFICATE_VERIFY_FAILED"):
                post.send(f"https://{other}:{there.port}/", {}, b"{}")
        monkeypatch.delenv("SSL_CERT_FILE")
        with pytest.raises(NotSent, match="CERTIFICATE_VERIFY_FAILED"):
            GuardedPost(Reach(ONE), 5, names(["127.0.0.2"])[0]).send(f"https://hooks.example:{there.port}/", {}, b"{}")
        assert len(there.received) == 1


def test_the_systems_resolver_gives_each_address_once() -> None:
    assert guarded_post.resolve("127.0.0.1", 80) == ["127.0.0.1"]
