"""Requests over a network that loses them: what may be repeated is repeated, and made once all the same."""

import asyncio
import time
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime
from pathlib import Path

import httpx
import pytest

from tests.client.faulty_proxy import FaultyProxy, faulty_proxy
from tests.conftest import Service
from tests.material import write_start
from wbar import AsyncClient, Client
from wbar.client.retries import Retries, retry_after
from wbar.errors import NotFound, QuotaExceeded, Unavailable, Unreachable

BUSY = (503, {"Retry-After": "1"}, '{"code": "unavailable", "detail": "busy"}')
LIMITED = (429, {"Retry-After": "1"}, '{"code": "rate_limited", "detail": "slower"}')


@pytest.fixture
def proxy(service: Service) -> Iterator[FaultyProxy]:
    with faulty_proxy(service.url) as made:
        yield made


@pytest.fixture
def client(service: Service, proxy: FaultyProxy) -> Iterator[Client]:
    with Client(proxy.url, service.key) as made:
        yield made


def test_a_lost_request_is_sent_again_and_retry_after_is_waited_for(proxy: FaultyProxy, client: Client) -> None:
    proxy.next("request lost", BUSY, LIMITED)
    began = time.monotonic()
    client.jobs.list()
    assert len(proxy.seen) == 4
    assert 2 < time.monotonic() - began < 15


def test_the_tries_are_bounded(service: Service, proxy: FaultyProxy, client: Client) -> None:
    proxy.next(*["request lost"] * 4)
    with pytest.raises(Unreachable):
        client.jobs.list()
    assert len(proxy.seen) == 4
    proxy.next(BUSY)
    with Client(proxy.url, service.key, retries=0) as impatient, pytest.raises(Unavailable, match="busy"):
        impatient.jobs.list()
    assert len(proxy.seen) == 1


def test_what_is_created_is_made_once_though_its_answer_was_lost(
    service: Service, proxy: FaultyProxy, client: Client, tmp_path: Path
) -> None:
    before = len([*client.checkpoints.iterate()])
    proxy.next("answer lost", "request lost")
    made = client.checkpoints.create(write_start(tmp_path), wait=False)
    keys = {key for method, _, key in proxy.seen if method == "POST"}
    assert [method for method, _, _ in proxy.seen] == ["POST"] * 3
    assert len(keys) == 1
    assert None not in keys
    assert len([*client.checkpoints.iterate()]) == before + 1
    proxy.next("answer lost")
    again = client.datasets.create("builtin:digits", wait=False)
    assert [method for method, _, _ in proxy.seen] == ["POST"] * 2
    client.datasets.get(again.id)
    # Two calls are two objects.
    assert client.checkpoints.create(write_start(tmp_path), wait=False).id != made.id


def test_a_deletion_whose_answer_was_lost_has_happened(proxy: FaultyProxy, client: Client) -> None:
    made = client.datasets.create("builtin:digits")
    proxy.next("answer lost")
    client.datasets.delete(made.id)
    assert [method for method, _, _ in proxy.seen] == ["DELETE"] * 2
    with pytest.raises(NotFound):
        client.datasets.delete(made.id)


def test_what_may_not_be_repeated_is_not(proxy: FaultyProxy, client: Client) -> None:
    proxy.next("answer lost")
    with pytest.raises(Unreachable):
        client.keys.create("lost", scopes=["read"])
    proxy.next(BUSY)
    with pytest.raises(Unavailable):
        client.jobs.pause("job_x")
    assert len(proxy.seen) == 1


def test_a_quota_and_a_long_pause_are_refused_at_once(proxy: FaultyProxy, client: Client) -> None:
    proxy.next((429, {"Retry-After": "1"}, '{"code": "quota_exceeded", "detail": "no more"}'))
    with pytest.raises(QuotaExceeded):
        client.jobs.list()
    proxy.next((503, {"Retry-After": "3600"}, '{"code": "unavailable", "detail": "an hour"}'))
    with pytest.raises(Unavailable):
        client.jobs.list()
    assert len(proxy.seen) == 1


def test_a_download_whose_connection_breaks_goes_on_by_itself(
    service: Service, proxy: FaultyProxy, client: Client, tmp_path: Path
) -> None:
    path = write_start(tmp_path)
    made = client.checkpoints.create(path)
    proxy.next("answer cut", "request lost", "answer cut")
    client.checkpoints.download(made.id, tmp_path / "out")
    assert (tmp_path / "out").read_bytes() == path.read_bytes()
    assert len(proxy.seen) == 4


def test_the_asynchronous_client_does_the_same(service: Service, proxy: FaultyProxy, tmp_path: Path) -> None:
    async def run() -> None:
        async with AsyncClient(proxy.url, service.key) as client:
            path = write_start(tmp_path)
            proxy.next("request lost", BUSY)
            made = await client.checkpoints.create(path)
            proxy.next("answer cut")
            await client.checkpoints.download(made.id, tmp_path / "out")
            assert (tmp_path / "out").read_bytes() == path.read_bytes()
            proxy.next("answer lost")
            await client.checkpoints.delete(made.id)
            proxy.next("answer lost")
            with pytest.raises(Unreachable):
                await client.keys.create("lost", scopes=["read"])

    asyncio.run(run())


def test_pauses_grow_with_jitter_to_a_bound() -> None:
    retries = Retries(most=20, first=0.25, longest=8.0)
    for tries, longest in ((1, 0.25), (2, 0.5), (6, 8.0), (20, 8.0)):
        pauses = [retries.pause(tries) or 0.0 for _ in range(200)]
        assert longest / 2 <= min(pauses) < max(pauses) <= longest
    assert retries.pause(21) is None
    assert (retries.pause(1, 30.0) or 0.0) >= 30.0
    assert retries.pause(1, 61.0) is None


def test_retry_after_is_a_number_or_a_date() -> None:
    def of(text: str) -> float:
        return retry_after(httpx.Response(503, headers={"Retry-After": text}))

    assert of("7") == 7
    assert 50 < of(format_datetime(datetime.now(UTC) + timedelta(minutes=1), usegmt=True)) <= 60
    assert of("Sun, 06 Nov 1994 08:49:37 GMT") == 0
    assert [of(text) for text in ("", "soon", "-1", "1e9")] == [0, 0, 0, 0]
    assert retry_after(httpx.Response(503)) == 0
