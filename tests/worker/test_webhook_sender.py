"""The sender as it runs: in the sweeper's process, against real receivers, killed where it hurts."""

import signal
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from standardwebhooks.webhooks import Webhook as Standard

from tests.conftest import DATABASES, Broker, Service, fresh_database, wait_until
from tests.receivers import Answering, receiver
from tests.store.rows import insert_inputs, spec
from wbar.webhooks import DeliveryStatus
from wbar_store.database import Tenant
from wbar_store.deliveries import Deliveries, DeliveryRecord
from wbar_store.events import Events
from wbar_store.jobs import Jobs
from wbar_store.webhooks import WebhookRecord, Webhooks
from wbar_worker.webhook_sender import LONGEST_DELAY, OF_A_WEBHOOK, backoff

MINE = Tenant("default")


class Sending:
    """Senders beside their sweepers, on a database of their own."""

    def __init__(self, service: Service) -> None:
        self.service, self.database = service, service.database
        self.webhooks = Webhooks(self.database)
        self.deliveries = Deliveries(self.database, self.webhooks)
        self.jobs = Jobs(self.database, Events(self.database))

    def start(self) -> None:
        self.service.start("sweep")

    def kill(self) -> None:
        self.service.signal("sweep", signal.SIGKILL)

    def hook(self, url: str, *events: str) -> WebhookRecord:
        return self.webhooks.create(MINE, url, events or ("*",))

    def found(self, hook: WebhookRecord, delivery: str) -> DeliveryRecord:
        return self.deliveries.find(MINE, hook.id, delivery)

    def wait(self, hook: WebhookRecord, delivery: str, status: DeliveryStatus, seconds: float = 30) -> DeliveryRecord:
        wait_until(
            lambda: self.found(hook, delivery).status == status, seconds, f"{status}: {self.found(hook, delivery)}"
        )
        return self.found(hook, delivery)

    def wait_for_error(self, hook: WebhookRecord, delivery: str) -> DeliveryRecord:
        wait_until(lambda: self.found(hook, delivery).error, 30, "an attempt")
        return self.found(hook, delivery)


@contextmanager
def senders(folder: Path, **environment: str) -> Iterator[Sending]:
    given = {
        "WBAR_WEBHOOKS_ALLOW": '["127.0.0.0/8"]',
        "WBAR_WEBHOOK_BACKOFF_SECONDS": "0.05",
        "WBAR_WEBHOOK_SECONDS": "10",
    }
    with fresh_database(DATABASES[-1], folder) as url:
        broker = Broker()
        broker.start()
        service = Service(folder, url, broker, **given | environment)
        insert_inputs(service.database)
        try:
            yield Sending(service)
        finally:
            service.stop()
            broker.kill()


@pytest.fixture(scope="module")
def sending(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Sending]:
    """One sender at work, shared by the tests that do not kill it."""
    with senders(tmp_path_factory.mktemp("sending")) as made:
        made.start()
        yield made


@pytest.fixture
def killable(tmp_path: Path) -> Iterator[Sending]:
    with senders(tmp_path, WBAR_WEBHOOK_SECONDS="0.5") as made:  # its lease is short, too
        yield made


def test_an_event_is_sent_within_about_a_second_signed_and_once(sending: Sending) -> None:
    with receiver() as there:
        hook = sending.hook(there.url, "job.*")
        ping = sending.deliveries.ping(MINE, hook.id)
        sending.wait(hook, ping.id, "delivered")  # it is at work
        began = time.monotonic()
        job = sending.jobs.create(MINE, spec(), "digits", {}).id
        there.wait_for(2)
        took = time.monotonic() - began
        sending.jobs.cancel(MINE, job)
        first, second, third = there.wait_for(3)
        assert took < 5, took  # half a second, where the machine is not at its limit
        assert first.id == ping.id
        events = [one.event(hook.secret) for one in (first, second, third)]
        assert [event.type for event in events] == ["webhook.ping", "job.queued", "job.cancelled"]
        assert [event.data.id for event in events] == [hook.id, job, job]
        for one in (first, second, third):
            assert Standard(hook.secret).verify(one.body, one.headers)["timestamp"]
            assert one.headers["content-type"] == "application/json"
            assert one.headers["host"] == f"127.0.0.1:{there.port}"
            assert one.headers["user-agent"].startswith("wbar/")
            assert "authorization" not in one.headers
            sending.wait(hook, one.id, "delivered")
        assert len(there.received) == 3


def test_a_sender_that_is_killed_between_post_and_record_has_it_sent_again(killable: Sending) -> None:
    def kill_the_first(n: int) -> Answering:
        if n == 0:
            killable.kill()  # the message has arrived here; that it has is not recorded
        return Answering(200)

    with receiver(kill_the_first) as there:
        hook = killable.hook(there.url)
        delivery = killable.deliveries.ping(MINE, hook.id).id
        killable.start()
        there.wait_for(1)
        wait_until(lambda: "sweep" not in killable.service.parts, 10, "the kill")
        assert killable.found(hook, delivery).status == "pending"
        killable.start()
        first, second = there.wait_for(2)[:2]
        assert (first.id, first.body) == (second.id, second.body) == (delivery, second.body)
        ended = killable.wait(hook, delivery, "delivered")
        assert (ended.attempts >= 2, ended.response_status) == (True, 200)


def test_errors_are_followed_by_further_attempts_until_one_arrives(sending: Sending) -> None:
    statuses = [500, 429, 503, 200]
    with receiver(lambda n: Answering(statuses[n])) as there:
        hook = sending.hook(there.url)
        delivery = sending.deliveries.ping(MINE, hook.id).id
        ended = sending.wait(hook, delivery, "delivered")
        assert (ended.attempts, ended.response_status, ended.error) == (4, 200, None)
        assert {one.id for one in there.received} == {delivery}
        for one in there.received:
            one.event(hook.secret)  # each attempt is signed with its own time


def test_a_receiver_that_is_down_gets_its_events_once_it_is_up(sending: Sending) -> None:
    with receiver() as there:
        port, url = there.port, there.url
    hook = sending.hook(url)
    delivery = sending.deliveries.ping(MINE, hook.id).id
    failed = sending.wait_for_error(hook, delivery)
    assert (failed.status, failed.response_status) == ("pending", None)
    assert "refused" in str(failed.error)
    with receiver(port=port) as there:
        assert there.wait_for(1)[0].id == delivery
        assert sending.wait(hook, delivery, "delivered").attempts > 1


def test_a_redirect_is_not_followed(sending: Sending) -> None:
    with receiver() as inside, receiver(lambda _: Answering(307, {"Location": inside.url}), host="127.0.0.2") as there:
        hook = sending.hook(there.url)
        delivery = sending.deliveries.ping(MINE, hook.id).id
        there.wait_for(2)
        missed = sending.wait_for_error(hook, delivery)
        assert (missed.response_status, missed.error) == (307, "a redirect, which is not followed")
        assert inside.received == []


def test_an_answer_of_410_disables_the_webhook(sending: Sending) -> None:
    with receiver(lambda _: Answering(410)) as there:
        hook = sending.hook(there.url)
        delivery = sending.deliveries.ping(MINE, hook.id).id
        assert sending.wait(hook, delivery, "failed").attempts == 1
        assert sending.webhooks.get(MINE, hook.id).status == "disabled"


@pytest.mark.long
def test_a_name_that_leads_inside_is_not_sent_to(tmp_path: Path) -> None:
    with senders(tmp_path, WBAR_WEBHOOKS_ALLOW="[]") as sending, receiver() as there:
        hooks = [sending.hook(f"{scheme}://localhost:{there.port}/") for scheme in ("http", "https")]
        hooks.append(sending.hook(there.url))
        pings = [sending.deliveries.ping(MINE, hook.id).id for hook in hooks]
        sending.start()
        for hook, ping in zip(hooks, pings, strict=True):
            assert "not in the public network" in str(sending.wait_for_error(hook, ping).error)
        assert there.received == []


@pytest.mark.long
def test_those_who_do_not_answer_keep_no_others_waiting_nor_the_sweeper(tmp_path: Path) -> None:
    hanging = threading.Event()

    def hang(_: int) -> Answering:
        hanging.wait(60)
        return Answering()

    with senders(tmp_path, WBAR_WEBHOOK_SECONDS="20") as sending, receiver(hang) as slow, receiver() as quick:
        silent, there = sending.hook(slow.url, "checkpoint.*"), sending.hook(quick.url, "job.*")
        for _ in range(40):
            sending.deliveries.ping(MINE, silent.id)
        sending.start()
        try:
            slow.wait_for(OF_A_WEBHOOK)
            sending.jobs.create(MINE, spec(), None, {})
            event = quick.wait_for(1, seconds=15)[0].event(there.secret)
            assert event.type == "job.queued"
            assert len(slow.received) == OF_A_WEBHOOK
        finally:
            hanging.set()


@pytest.mark.long
def test_two_senders_send_each_message_once(tmp_path: Path) -> None:
    with senders(tmp_path) as sending, receiver() as there:
        hook = sending.hook(there.url)
        sending.start()
        first = sending.service.parts.pop("sweep")
        sending.start()
        try:
            sent = [sending.deliveries.ping(MINE, hook.id).id for _ in range(60)]
            there.wait_for(60)
            for one in sent:
                sending.wait(hook, one, "delivered")
        finally:
            sending.service.parts["first"] = first  # stopped with the others
        assert sorted(one.id for one in there.received) == sorted(sent)


def test_the_time_between_attempts_doubles_up_to_two_hours() -> None:
    assert [backoff(n, 5, 0) for n in (1, 2, 3, 4)] == [5, 10, 20, 40]
    assert [backoff(n, 5, 1) for n in (1, 2, 3, 4)] == [2.5, 5, 10, 20]
    assert backoff(1000, 5, 0) == LONGEST_DELAY
    at, n = 0.0, 0
    while at < 86_400:
        n += 1
        at += backoff(n, 5, 0.5)
    assert 15 < n < 40, "attempts within a day"
