"""A validation belongs to one worker at a time, and what kills every attempt is given up."""

import pytest
from sqlalchemy import update

from wbar.checkpoints import CheckpointFacts
from wbar.datasets import ImageShape, Split
from wbar.errors import NotFound
from wbar.spec import Network, StoredWeights
from wbar_store.blobs import Received
from wbar_store.checkpoints import Checkpoints, GivenNetwork
from wbar_store.claims import Claim
from wbar_store.database import Database, Tenant, now
from wbar_store.datasets import DatasetOptions, Datasets, DatasetSummary
from wbar_store.repository import PageRequest
from wbar_store.tables import checkpoints
from wbar_store.validated_uploads import MAX_ATTEMPTS

MINE, OTHER = Tenant("default"), Tenant("other")
RECEIVED = Received("tmp/x", "a" * 64, 7)
FACTS = CheckpointFacts("safetensors", 10, 2, Network("resnet20", 10), "detected", "module.", ["resnet21"])
WEIGHTS = "b" * 64


@pytest.fixture
def uploads(database: Database) -> Checkpoints:
    return Checkpoints(database)


@pytest.fixture
def uploaded(uploads: Checkpoints) -> str:
    """A checkpoint that a worker was notified of a while ago."""
    made = uploads.create(MINE, "n", RECEIVED, GivenNetwork(num_classes=10)).id
    with uploads.database.write() as connection:
        connection.execute(update(checkpoints).values(notified_at=now() - 100))
    return made


def expire(uploads: Checkpoints) -> None:
    with uploads.database.write() as connection:
        connection.execute(update(checkpoints).values(lease_until=now() - 1))


def test_a_checkpoint_becomes_what_was_found_in_it(uploads: Checkpoints, uploaded: str) -> None:
    waiting = uploads.get(MINE, uploaded)
    assert (waiting.status, waiting.given.num_classes, waiting.to_api().architecture) == ("processing", 10, None)
    claimed = uploads.claim(uploaded)
    assert claimed is not None
    assert uploads.accept(claimed.claim, FACTS, WEIGHTS)
    record = uploads.get(MINE, uploaded)
    assert record.stored() == StoredWeights(
        id=uploaded, sha256="a" * 64, blob="b" * 64, prefix="module.", network=Network("resnet20", 10)
    )
    sent = record.to_api()
    assert (sent.status, sent.parameters, sent.format) == ("ready", 10, "safetensors")
    assert sent.architecture is not None
    assert (sent.architecture.name, sent.architecture.source) == ("resnet20", "detected")
    assert sent.architecture.ambiguous_with == ["resnet21"]
    assert uploads.remove(MINE, uploaded) == ["a" * 64, "b" * 64]


def test_a_dataset_becomes_what_was_found_in_it(database: Database) -> None:
    sets = Datasets(database)
    made = sets.create(MINE, "n", "classification", "builtin:digits", DatasetOptions(max_train_images=50))
    claimed = sets.claim(made.id)
    assert claimed is not None
    assert (claimed.source, claimed.options.max_train_images, claimed.content) == ("builtin:digits", 50, None)
    summary = DatasetSummary(
        classes=["a", "b"], splits={"train": Split(images=8), "val": Split(images=2)},
        image=ImageShape(channels=1, height=8, width=8), many_sizes=False, mean=[0.3], std=[0.4], held_out=[1, 2],
        warnings=["w"],
    )  # fmt: skip
    assert sets.accept(claimed.claim, "p" * 64, 100, "c" * 64, summary)
    record = sets.get(MINE, made.id)
    assert record.summary == summary
    assert (record.stored().blob, record.blobs, record.bytes) == ("p" * 64, ["p" * 64], 100)
    assert record.to_api().warnings == ["w"]


def test_another_tenants_uploads_do_not_exist(uploads: Checkpoints, uploaded: str) -> None:
    assert uploads.page(OTHER, PageRequest()).records == []
    for ask in (uploads.get, uploads.remove):
        with pytest.raises(NotFound):
            ask(OTHER, uploaded)
    assert [one.id for one in uploads.page(MINE, PageRequest()).records] == [uploaded]


def test_a_second_message_does_not_disturb_a_validation_at_work(uploads: Checkpoints, uploaded: str) -> None:
    assert uploads.overdue(broker_is_empty=True) == [uploaded]
    first = uploads.claim(uploaded)
    assert first is not None
    assert uploads.claim(uploaded) is None
    assert uploads.overdue(broker_is_empty=True) == []
    assert uploads.renew(first.claim)
    assert uploads.accept(first.claim, FACTS, WEIGHTS)
    assert uploads.claim(uploaded) is None


def test_a_dead_validation_is_taken_over_and_its_late_verdict_refused(uploads: Checkpoints, uploaded: str) -> None:
    uploads.claim(uploaded)
    expire(uploads)
    second = uploads.claim(uploaded)
    assert second is not None
    assert second.attempts == 2
    first = Claim(uploaded, 1)
    assert not uploads.accept(first, FACTS, WEIGHTS)
    assert not uploads.renew(first)
    assert uploads.renew(second.claim)


def test_what_kills_every_attempt_is_given_up_but_not_under_a_living_one(uploads: Checkpoints, uploaded: str) -> None:
    for _ in range(MAX_ATTEMPTS):
        expire(uploads)
        assert uploads.claim(uploaded) is not None
    assert not uploads.give_up(uploaded)
    expire(uploads)
    assert uploads.claim(uploaded) is None
    assert uploads.give_up(uploaded)
    rejected = uploads.get(MINE, uploaded)
    assert (rejected.status, rejected.content) == ("rejected", None)
    assert rejected.error is not None
    assert rejected.error.code == "ingest_failed"
