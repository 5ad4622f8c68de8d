"""The outbox and the queue of deliveries: no change without its event, no event twice without need, none lost."""

import threading
from typing import Any

import pytest
from sqlalchemy import func, insert, select, update

from tests.conftest import wait_until
from tests.store.rows import PROGRESS, insert_inputs, result, spec
from wbar.checkpoints import Fault
from wbar.errors import InvalidTransition, NotFound, QuotaExceeded
from wbar.merges import MeanMerge, MergeSource, MergeSpec
from wbar.webhooks import JobSummary, MergeSummary, UploadSummary, WebhookEvent
from wbar_store import deliveries as store_deliveries
from wbar_store.attempts import ResultBlobs
from wbar_store.blobs import Received
from wbar_store.checkpoints import GivenNetwork
from wbar_store.claims import Claim
from wbar_store.database import Database, Tenant, now
from wbar_store.deliveries import Due, Message
from wbar_store.quotas import Quota
from wbar_store.repository import PageRequest
from wbar_store.store import Store
from wbar_store.tables import jobs, webhook_deliveries, webhooks

MINE, OTHER = Tenant("default"), Tenant("other")
ALL = PageRequest(100, order="asc")
URL = "https://example.com/hook"


@pytest.fixture
def store(database: Database) -> Store:
    insert_inputs(database)
    return Store(database, None, None)  # type: ignore[arg-type]  # neither blobs nor broker is asked


def hook(store: Store, *events: str, tenant: Tenant = MINE) -> str:
    return store.webhooks.create(tenant, URL, events or ("*",)).id


def told(store: Store, webhook: str, tenant: Tenant = MINE) -> list[WebhookEvent]:
    return [one.to_api().payload for one in store.deliveries.of_webhook(tenant, webhook, ALL).records]


def types(store: Store, webhook: str, tenant: Tenant = MINE) -> list[str]:
    return [event.type for event in told(store, webhook, tenant)]


def claimed(store: Store, lease: float = 60) -> Message:
    (due,) = store.deliveries.due(10)
    message = store.deliveries.claim(due, lease)
    assert message is not None
    return message


def make_due(store: Store) -> None:
    with store.database.write() as connection:
        pending = webhook_deliveries.c.status == "pending"
        connection.execute(update(webhook_deliveries).where(pending).values(next_attempt_at=now() - 1))


# The outbox.


def test_every_status_of_a_job_is_told(store: Store) -> None:
    everything, ends, theirs = hook(store), hook(store, "job.succeeded", "job.failed"), hook(store, tenant=OTHER)
    job = store.jobs.create(MINE, spec(), "digits", {"team": "vision"}).id
    store.attempts.claim(job, 60)
    store.jobs.pause(MINE, job)
    store.attempts.yield_back(Claim(job, 1), "queued")
    store.jobs.resume(MINE, job)
    store.attempts.claim(job, 60)
    store.attempts.lose(Claim(job, 2), "killed")
    store.attempts.claim(job, 60)
    assert store.attempts.succeed(Claim(job, 3), result(), ResultBlobs("a" * 64, "b" * 64, None), PROGRESS)
    assert not store.attempts.fail(Claim(job, 3), Fault(code="late", message="of a stale claim"))
    cancelled = store.jobs.create(MINE, spec(), None, {}).id
    store.jobs.cancel(MINE, cancelled)
    store.jobs.cancel(MINE, cancelled)  # it is idempotent: nothing has happened
    failed = store.jobs.create(MINE, spec(), None, {}).id
    store.attempts.claim(failed, 60)
    store.attempts.fail(Claim(failed, 1), Fault(code="diverged", message="the loss is nan"))
    assert types(store, everything) == [
        "job.queued", "job.running", "job.paused", "job.queued", "job.running", "job.queued", "job.running",
        "job.succeeded", "job.queued", "job.cancelled", "job.queued", "job.running", "job.failed",
    ]  # fmt: skip
    first, second = told(store, ends)
    assert isinstance(first.data, JobSummary)
    assert (first.type, first.data.id, first.data.status) == ("job.succeeded", job, "succeeded")
    assert (first.data.verdict, first.data.name, first.data.metadata) == ("same", "digits", {"team": "vision"})
    assert (first.data.checkpoint, first.data.dataset, first.data.attempts) == ("ckpt_1", "ds_1", 3)
    assert first.data.created_at < str(first.data.started_at) < str(first.data.finished_at) <= first.timestamp
    assert isinstance(second.data, JobSummary)
    assert second.data.error == Fault(code="diverged", message="the loss is nan")
    assert told(store, theirs, OTHER) == []


def test_the_ends_of_uploads_are_told(store: Store) -> None:
    everything, rejections = hook(store), hook(store, "dataset.rejected")
    ids = [store.datasets.create(MINE, "digits", "classification", "builtin:digits").id for _ in range(2)]
    ids += [store.checkpoints.create(MINE, "net.pt", Received("", "f" * 64, 3), GivenNetwork()).id for _ in range(2)]
    for repository, one in zip([store.datasets] * 2 + [store.checkpoints] * 2, ids, strict=True):  # type: ignore[operator]
        repository.claim(one)
    assert store.datasets.reject(Claim(ids[0], 1), Fault(code="no_images", message="none"))
    assert not store.datasets.reject(Claim(ids[1], 7), Fault(code="late", message="of a stale claim"))
    assert store.datasets.give_up(ids[1], 1) is False, "attempts are left"
    assert store.checkpoints.reject(Claim(ids[2], 1), Fault(code="corrupt_file", message="no"))
    with store.database.write() as connection:
        connection.execute(
            update(store.checkpoints.table).where(store.checkpoints.table.c.id == ids[3]).values(attempts=3)
        )
    assert store.checkpoints.give_up(ids[3], 3)
    assert types(store, everything) == ["dataset.rejected", "checkpoint.rejected", "checkpoint.rejected"]
    (event,) = told(store, rejections)
    assert isinstance(event.data, UploadSummary)
    assert (event.data.id, event.data.object, event.data.status) == (ids[0], "dataset", "rejected")
    assert event.data.error == Fault(code="no_images", message="none")


def test_the_ends_of_merges_are_told(store: Store) -> None:
    everything, failures = hook(store), hook(store, "merge.failed")
    spec = MergeSpec(sources=(MergeSource(id="ckpt_1", sha256="a" * 64),), base=None, method=MeanMerge(), dtype=None)
    first, second = (store.merges.create(MINE, spec, name, 8, None).id for name in ("one", "two"))
    claimed = store.merges.claim(first)
    assert claimed is not None
    assert not store.merges.fail(Claim(first, 7), Fault(code="late", message="of a stale claim"))
    assert store.merges.fail(claimed.claim, Fault(code="checkpoints_differ", message="no"))
    store.merges.cancel(MINE, second)
    assert types(store, everything) == ["merge.failed", "merge.cancelled"]
    (event,) = told(store, failures)
    assert isinstance(event.data, MergeSummary)
    assert (event.data.id, event.data.name, event.data.status) == (first, "one", "failed")
    assert event.data.error == Fault(code="checkpoints_differ", message="no")
    assert event.data.created_at <= str(event.data.started_at) <= str(event.data.finished_at)


def test_a_change_that_is_rolled_back_is_not_told(store: Store) -> None:
    webhook = hook(store)
    job = store.jobs.create(MINE, spec(), None, {}).id

    def cancel_and_fail() -> None:
        with store.database.write():
            store.jobs.cancel(MINE, job)
            raise RuntimeError("something else failed")

    with pytest.raises(RuntimeError, match="something else"):
        cancel_and_fail()
    assert types(store, webhook) == ["job.queued"]
    assert store.jobs.get(MINE, job).status == "queued"


def test_a_row_that_a_hand_has_spoilt_keeps_no_job_from_its_end(store: Store) -> None:
    webhook = hook(store)
    job = store.jobs.create(MINE, spec(), None, {}).id
    with store.database.write() as connection:
        connection.execute(update(jobs).where(jobs.c.id == job).values(metadata=["no", "map"]))
        connection.execute(update(webhooks).where(webhooks.c.id == hook(store)).values(events={"no": "list"}))
    assert store.jobs.move(job, "cancelled")
    assert types(store, webhook) == ["job.queued"]


def test_a_webhook_that_is_deleted_while_a_job_moves_fails_no_job(store: Store) -> None:
    """On PostgreSQL both go on at once: the delivery must not refer to a row that is about to be gone."""
    job = store.jobs.create(MINE, spec(), None, {}).id
    hooks = [hook(store) for _ in range(8)]
    faults: list[Exception] = []

    def act(one: Any) -> None:
        try:
            one()
        except Exception as error:
            faults.append(error)

    def move() -> None:
        for target in ("running", "queued") * 20:
            assert store.jobs.move(job, target)  # type: ignore[arg-type]

    def remove() -> None:
        for one in hooks:
            store.webhooks.remove(MINE, one)

    threads = [threading.Thread(target=act, args=(one,)) for one in (move, remove)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert faults == []
    with store.database.read() as connection:
        assert connection.execute(select(func.count()).select_from(webhook_deliveries)).scalar_one() == 0


# The queue.


def test_a_delivery_has_one_sender_until_its_lease_is_over(store: Store) -> None:
    webhook = hook(store)
    sent = store.deliveries.ping(MINE, webhook)
    (due,) = store.deliveries.due(10)
    first = store.deliveries.claim(due, 0.2)
    assert first is not None
    assert (first.id, first.attempt, first.url, first.body) == (sent.id, 1, URL, sent.payload.encode())
    assert store.deliveries.due(10) == []
    assert store.deliveries.claim(due, 60) is None, "another sender saw it before it was claimed"
    wait_until(lambda: store.deliveries.due(10), 10, "the end of the lease")
    second = claimed(store)
    assert (second.id, second.attempt, second.body) == (first.id, 2, first.body)
    assert not store.deliveries.delivered(first, 200), "the lease was over"
    assert store.deliveries.missed(first, 500, "late", 0) is None
    assert store.deliveries.delivered(second, 204)
    found = store.deliveries.find(MINE, webhook, sent.id).to_api()
    assert (found.status, found.attempts, found.response_status, found.error) == ("delivered", 2, 204, None)
    assert found.next_attempt_at is None
    assert str(found.delivered_at) >= str(found.attempted_at) > found.created_at
    assert store.deliveries.due(10) == []


def test_one_of_many_senders_gets_each_delivery(store: Store) -> None:
    webhook = hook(store)
    for _ in range(20):
        store.deliveries.ping(MINE, webhook)
    due, got = store.deliveries.due(20), list[str]()

    def claim_all() -> None:
        got.extend(message.id for one in due if (message := store.deliveries.claim(one, 60)) is not None)

    threads = [threading.Thread(target=claim_all) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(got) == sorted(one.id for one in due)


def test_what_failed_is_tried_again_until_a_day_is_over(store: Store) -> None:
    webhook = hook(store)
    sent = store.deliveries.ping(MINE, webhook)
    assert store.deliveries.missed(claimed(store), 500, "answered with 500", 3600) == "pending"
    found = store.deliveries.find(MINE, webhook, sent.id)
    assert (found.response_status, found.error, found.status) == (500, "answered with 500", "pending")
    assert found.next_attempt_at is not None
    assert found.next_attempt_at - found.created_at == pytest.approx(3600, abs=20)
    assert store.deliveries.due(10) == []
    make_due(store)
    assert store.deliveries.missed(claimed(store), None, "x" * 9999, 90_000) == "failed"
    found = store.deliveries.find(MINE, webhook, sent.id)
    assert (found.attempts, found.response_status, len(found.error or ""), found.next_attempt_at) == (
        2,
        None,
        500,
        None,
    )
    store.deliveries.replay(MINE, webhook, sent.id)
    again = claimed(store)
    assert (again.id, again.attempt, again.body) == (sent.id, 3, sent.payload.encode())
    assert store.deliveries.delivered(again, 200)
    assert store.deliveries.replay(MINE, webhook, sent.id).status == "pending", "also what has arrived"


def test_a_receiver_that_is_gone_gets_no_more(store: Store) -> None:
    webhook, other = hook(store), hook(store)
    sent = [store.deliveries.ping(MINE, webhook).id for _ in range(2)]
    for due in store.deliveries.due(1):
        message = store.deliveries.claim(due, 60)
        assert message is not None
        assert store.deliveries.missed(message, 410, "answered with 410", 5) == "failed"
    shown = store.webhooks.get(MINE, webhook).to_api()
    assert (shown.status, "410" in str(shown.disabled_reason)) == ("disabled", True)
    (waiting,) = store.deliveries.due(10)
    assert store.deliveries.claim(waiting, 60) is None
    assert [store.deliveries.find(MINE, webhook, one).status for one in sent] == ["failed", "failed"]
    for refused in (
        lambda: store.deliveries.ping(MINE, webhook),
        lambda: store.deliveries.replay(MINE, webhook, sent[0]),
    ):
        with pytest.raises(InvalidTransition, match="enable"):
            refused()
    store.jobs.create(MINE, spec(), None, {})
    assert (types(store, other), len(types(store, webhook))) == (["job.queued"], 2)
    store.webhooks.enable(MINE, webhook)
    store.deliveries.replay(MINE, webhook, sent[0])
    assert store.webhooks.get(MINE, webhook).to_api().disabled_reason is None


def test_the_slots_of_the_busy_are_left_out(store: Store) -> None:
    hooks = [hook(store), hook(store), hook(store, tenant=OTHER)]
    for one, tenant in zip(hooks, (MINE, MINE, OTHER), strict=True):
        store.deliveries.ping(tenant, one)
    assert [due.webhook for due in store.deliveries.due(10)] == hooks
    assert [due.webhook for due in store.deliveries.due(2)] == hooks[:2]
    assert [due.webhook for due in store.deliveries.due(10, busy_webhooks=hooks[:1])] == hooks[1:]
    assert [due.webhook for due in store.deliveries.due(10, busy_tenants=["default"])] == hooks[2:]


def test_a_deleted_webhook_is_sent_nothing(store: Store) -> None:
    webhook = hook(store)
    store.deliveries.ping(MINE, webhook)
    (due,) = store.deliveries.due(10)
    message = claimed(store)
    store.webhooks.remove(MINE, webhook)
    assert store.deliveries.claim(due, 60) is None
    assert not store.deliveries.delivered(message, 200)
    assert store.deliveries.missed(message, 410, "gone", 5) is None
    with pytest.raises(NotFound):
        store.webhooks.remove(MINE, webhook)


def test_secrets_sign_beside_each_other_until_the_overlap_is_over(store: Store) -> None:
    webhook = store.webhooks.create(MINE, URL, ("*",))
    store.deliveries.ping(MINE, webhook.id)
    second = store.webhooks.rotate(MINE, webhook.id, 3600)
    third = store.webhooks.rotate(MINE, webhook.id, 7200)  # the answer with the second one was lost
    assert len({webhook.secret, second.secret, third.secret}) == 3
    assert claimed(store).secrets == (third.secret, second.secret, webhook.secret)
    with store.database.write() as connection:
        former = [{"secret": second.secret, "until": 0.0}]
        connection.execute(update(webhooks).where(webhooks.c.id == webhook.id).values(former_secrets=former))
    make_due(store)
    assert claimed(store).secrets == (third.secret,)
    at_once = store.webhooks.rotate(MINE, webhook.id, 0)
    make_due(store)
    assert claimed(store).secrets == (at_once.secret,)
    assert webhook.secret not in repr(webhook)
    assert webhook.to_api().secret is None


def test_deliveries_are_of_a_webhook_and_of_a_tenant(store: Store) -> None:
    webhook, other, theirs = hook(store), hook(store), hook(store, tenant=OTHER)
    sent = store.deliveries.ping(MINE, webhook).id
    for tenant, wrong in ((MINE, other), (MINE, theirs), (OTHER, webhook), (OTHER, theirs)):
        with pytest.raises(NotFound):
            store.deliveries.find(tenant, wrong, sent)
        with pytest.raises(NotFound):
            store.deliveries.replay(tenant, wrong, sent)
    with pytest.raises(NotFound):
        store.deliveries.of_webhook(OTHER, webhook, ALL)
    assert store.deliveries.of_webhook(MINE, webhook, ALL, "failed").records == []
    assert [one.id for one in store.deliveries.of_webhook(MINE, webhook, ALL, "pending").records] == [sent]


def test_ended_deliveries_are_deleted_in_time_and_in_number(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(store_deliveries, "MOST_KEPT", 3)
    webhook, other = hook(store), hook(store)
    with store.database.write() as connection:
        base = {"tenant": "default", "type": "x", "payload": "{}", "attempts": 1, "retry_until": 0.0}
        rows = [
            base
            | {
                "id": f"msg_{n}",
                "webhook": webhook,
                "status": "delivered",
                "next_attempt_at": None,
                "created_at": now(),
            }
            for n in range(1, 6)
        ]
        old = [
            base | {"id": f"msg_a{n}", "webhook": other, "status": status, "next_attempt_at": due, "created_at": 0.0}
            for n, (status, due) in enumerate([("failed", None), ("pending", 1.0)])
        ]
        for row in rows + old:
            connection.execute(insert(webhook_deliveries).values(**row))
    store.deliveries.sweep()
    with store.database.read() as connection:
        left = set(connection.execute(select(webhook_deliveries.c.id)).scalars())
    assert left == {"msg_3", "msg_4", "msg_5", "msg_a1"}, "what waits is not deleted"


def test_a_tenant_has_no_more_webhooks_than_it_may(store: Store) -> None:
    limits = Quota(bytes=None, jobs=None, webhooks=2)
    for _ in range(2):
        store.quotas.check_webhooks(MINE, limits)
        webhook = hook(store)
    with pytest.raises(QuotaExceeded, match="2 webhooks"):
        store.quotas.check_webhooks(MINE, limits)
    store.quotas.check_webhooks(OTHER, limits)
    store.webhooks.remove(MINE, webhook)
    store.quotas.check_webhooks(MINE, limits)


def test_a_delivery_that_is_not_there_is_not_claimed(store: Store) -> None:
    assert store.deliveries.claim(Due("msg_1", 0, "hook_1", "default"), 60) is None
