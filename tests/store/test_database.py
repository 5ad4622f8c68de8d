"""Migrations say what the tables say; writers wait for each other; ids sort."""

import threading

import pytest
from alembic import command
from sqlalchemy import insert, select, text, update

from wbar.errors import IdempotencyKeyInProgress, IdempotencyKeyReused
from wbar_store import keys
from wbar_store.database import Database, Tenant, clock, now, rfc3339
from wbar_store.idempotency import Idempotency
from wbar_store.ids import new_id
from wbar_store.migrate import _config, difference, upgrade
from wbar_store.tables import events, idempotency, jobs, metadata, metrics, workers


def test_migrations_lead_to_the_tables(database: Database) -> None:
    assert difference(database) == []
    upgrade(database)
    assert difference(database) == []


def test_a_database_of_the_first_version_is_brought_up_with_its_jobs(database_url: str) -> None:
    old = Database(database_url)
    with old.write() as connection:
        command.upgrade(_config(connection), "0001")
    with old.write() as connection:
        values = {"tenant": "t", "name": "n", "status": "ready", "bytes": 1, "sha256": "a" * 64, "attempts": 0}
        values |= {"created_at": 0.0}
        columns = ("id", "tenant", "name", "status", "bytes", "sha256", "attempts", "created_at")
        row = {**values, "id": "ckpt_1"}
        connection.execute(
            text(
                f"INSERT INTO checkpoints ({', '.join(columns)}, given) VALUES ({', '.join(':' + c for c in columns)}, '{{}}')"
            ),
            row,
        )
        connection.execute(
            text(
                "INSERT INTO datasets (id, tenant, name, status, task, options, attempts, created_at) "
                "VALUES ('ds_1', 't', 'n', 'ready', 'classification', '{}', 0, 0.0)"
            )
        )
        connection.execute(
            text(
                "INSERT INTO jobs (id, tenant, status, checkpoint, dataset, method, recipe, seed, metadata, attempts, losses, "
                "last_event, created_at) "
                "VALUES ('job_1', 't', 'succeeded', 'ckpt_1', 'ds_1', '{}', '{}', 0, '{}', 1, 0, 0, 0.0)"
            )
        )
        connection.execute(
            text("INSERT INTO events (job, seq, type, data, created_at) VALUES ('job_1', 1, 'log', '{}', 0.0)")
        )
        connection.execute(text("INSERT INTO metrics (job, step, point) VALUES ('job_1', 1, '{}')"))
    upgrade(old)
    with old.read() as connection:
        assert connection.execute(select(events)).one().job == "job_1"
        assert connection.execute(select(metrics)).one().job == "job_1"
        row = connection.execute(select(jobs)).one()
    assert (row.id, row.flatness, row.swag, row.report) == ("job_1", False, 0, None)
    assert difference(old) == []
    old.dispose()


def test_every_object_belongs_to_a_tenant() -> None:
    owned = {"api_keys", "checkpoints", "datasets", "jobs", "idempotency"}
    assert {name for name, table in metadata.tables.items() if "tenant" in table.c} == owned
    parts_of_a_job = {name for name, table in metadata.tables.items() if "job" in table.c}
    assert set(metadata.tables) == owned | parts_of_a_job | {"blobs", "workers"}


def test_reading_then_writing_never_fails_locked(database: Database) -> None:
    with database.write() as connection:
        connection.execute(insert(workers).values(name="w", queue="train", device="cpu", slots=0, seen_at=0.0))

    def raise_by_one() -> None:
        for _ in range(25):
            with database.write() as connection:
                found = connection.execute(select(workers.c.slots).with_for_update()).scalar_one()
                connection.execute(update(workers).values(slots=found + 1))

    threads = [threading.Thread(target=raise_by_one) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    with database.read() as connection:
        assert connection.execute(select(workers.c.slots)).scalar_one() == 100


def test_a_failed_transaction_leaves_nothing(database: Database) -> None:
    def fail() -> None:
        with database.write() as connection:
            keys.create(connection, "x", key="k")
            raise RuntimeError("no")

    with pytest.raises(RuntimeError):
        fail()
    with database.read() as connection:
        assert keys.tenant_of(connection, "k") is None


def test_the_databases_clock_moves(database: Database) -> None:
    with database.read() as connection:
        first = clock(connection)
        assert first > 1.7e9
        assert connection.execute(select(now() >= first)).scalar_one()


def test_times_are_rfc3339() -> None:
    assert rfc3339(0.25) == "1970-01-01T00:00:00.250000Z"
    assert rfc3339(None) is None


def test_ids_sort_by_creation() -> None:
    made = [new_id("job") for _ in range(5000)]
    assert made == sorted(made)
    assert len(set(made)) == 5000


def test_keys_open_one_tenant_and_are_not_kept(database: Database) -> None:
    with database.write() as connection:
        key = keys.create(connection, "x", tenant="acme")
    with database.read() as connection:
        found = keys.tenant_of(connection, key)
        assert found is not None
        assert found.name == "acme"
        assert keys.tenant_of(connection, key + "x") is None


def test_an_idempotency_key_answers_once(database: Database) -> None:
    tenant, store = Tenant("default"), Idempotency(database)
    assert store.begin(tenant, "k", "print") is None
    with pytest.raises(IdempotencyKeyInProgress):
        store.begin(tenant, "k", "print")
    store.finish(tenant, "k", 201, {"id": "job_1"})
    assert store.begin(tenant, "k", "print") == (201, {"id": "job_1"})
    with pytest.raises(IdempotencyKeyReused):
        store.begin(tenant, "k", "another print")
    assert store.begin(Tenant("other"), "k", "print") is None
    with database.write() as connection:
        connection.execute(update(idempotency).values(created_at=now() - 25 * 3600))
    assert store.begin(tenant, "k", "another print") is None
    store.forget(tenant, "k")
    assert store.begin(tenant, "k", "print") is None
