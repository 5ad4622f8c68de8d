"""A judgement belongs to one worker at a time, and what kills every attempt is given up."""

import pytest
from sqlalchemy import insert, update

from wbar_store.database import Database, now
from wbar_store.notifier import Notifier
from wbar_store.tables import checkpoints
from wbar_store.uploads import MAX_ATTEMPTS, Uploads


@pytest.fixture
def uploads(database: Database) -> Uploads:
    with database.write() as connection:
        connection.execute(
            insert(checkpoints).values(
                id="ckpt_1", tenant="t", name="n", status="processing", bytes=1, sha256="a" * 64, content="a" * 64, given={},
                attempts=0, created_at=now(), notified_at=now() - 100,
            )
        )  # fmt: skip
    return Uploads(database, Notifier("memory://"))


def expire(uploads: Uploads) -> None:
    with uploads.database.write() as connection:
        connection.execute(update(checkpoints).values(lease_until=now() - 1))


def test_a_second_message_does_not_disturb_a_judgement_at_work(uploads: Uploads) -> None:
    assert uploads.overdue(broker_is_empty=True) == ["ckpt_1"]
    first = uploads.claim("ckpt_1")
    assert first is not None
    assert uploads.claim("ckpt_1") is None
    assert uploads.overdue(broker_is_empty=True) == []
    assert uploads.renew("ckpt_1", first.attempts)
    with uploads.database.write() as connection:
        assert uploads.settle(connection, "ckpt_1", first.attempts, {"status": "ready"})
    assert uploads.claim("ckpt_1") is None


def test_a_dead_judgement_is_taken_over_and_its_late_verdict_refused(uploads: Uploads) -> None:
    uploads.claim("ckpt_1")
    expire(uploads)
    second = uploads.claim("ckpt_1")
    assert second is not None
    assert second.attempts == 2
    with uploads.database.write() as connection:
        assert not uploads.settle(connection, "ckpt_1", 1, {"status": "ready"})
    assert not uploads.renew("ckpt_1", 1)


def test_what_kills_every_attempt_is_given_up_but_not_under_a_living_one(uploads: Uploads) -> None:
    for _ in range(MAX_ATTEMPTS):
        expire(uploads)
        assert uploads.claim("ckpt_1") is not None
    assert not uploads.give_up("ckpt_1")
    expire(uploads)
    assert uploads.claim("ckpt_1") is None
    assert uploads.give_up("ckpt_1")
