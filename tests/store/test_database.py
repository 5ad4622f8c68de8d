"""Migrations say what the tables say; writers wait for each other; ids sort."""

import re
import threading
from pathlib import Path

import pytest
from alembic.operations import Operations
from alembic.runtime.migration import MigrationContext
from sqlalchemy import String, delete, event, insert, select, text, update
from sqlalchemy.exc import IntegrityError

from tests.store.rows import insert_inputs, spec
from wbar.errors import IdempotencyKeyReused, NotFound, Unavailable
from wbar.method import METHODS, AutoMethod
from wbar_store import blob_guard
from wbar_store.database import Database, Tenant, clock, now, rfc3339
from wbar_store.events import Events
from wbar_store.idempotency import FirstAnswer, Idempotency
from wbar_store.ids import kind_of, new_id
from wbar_store.jobs import Jobs
from wbar_store.keys import Keys
from wbar_store.migrate import difference, downgrade, upgrade
from wbar_store.tables import (
    REFERENCES,
    api_keys,
    datasets,
    events,
    idempotency,
    job_inputs,
    job_metadata,
    jobs,
    metadata,
    workers,
)
from wbar_store.workers import WorkerRecord, Workers


def test_migrations_lead_to_the_tables(database: Database) -> None:
    assert difference(database) == []
    upgrade(database)
    assert difference(database) == []


def test_migrations_lead_back_and_forward_again(database: Database) -> None:
    insert_inputs(database)
    job = Jobs(database, Events(database)).create(Tenant("default"), spec(), "kept", {}).id
    everything, limited = Keys(database).create("all"), Keys(database).create("reads", scopes=("read",))
    Idempotency(database).once(Tenant("default"), "k", "print", lambda: FirstAnswer("job_1", '{"id":"job_1"}'))
    downgrade(database, "0001")
    upgrade(database)
    assert difference(database) == []
    assert Jobs(database, Events(database)).get(Tenant("default"), job).name == "kept"
    assert Keys(database).valid(everything.key) is not None
    assert Keys(database).valid(limited.key) is None, "a version without scopes would have let it do everything"
    again = Idempotency(database).once(Tenant("default"), "k", "print", lambda: FirstAnswer("job_2", "{}"))
    assert again == (FirstAnswer("job_1", '{"id":"job_1"}'), True)
    downgrade(database, "base")
    upgrade(database)
    assert difference(database) == []


def test_the_version_before_goes_on_beside_the_new_tables(database: Database) -> None:
    """The statements of version 0.5, while an upgrade rolls through."""
    with database.write() as connection:
        connection.exec_driver_sql(
            "INSERT INTO api_keys (id, tenant, name, sha256, created_at) VALUES ('key_1', 'default', 'old', 'x', 0)"
        )
        connection.exec_driver_sql(
            "INSERT INTO idempotency (tenant, key, fingerprint, created_at) VALUES ('default', 'k', 'print', 9e9)"
        )
    assert Keys(database).get(Tenant("default"), "key_1").scopes == ("read", "write", "admin")
    create = lambda: FirstAnswer("job_2", "{}")  # noqa: E731
    with pytest.raises(Unavailable):
        Idempotency(database).once(Tenant("default"), "k", "print", create)
    with database.write() as connection:
        connection.exec_driver_sql('UPDATE idempotency SET status = 201, body = \'{"id":"job_1"}\'')
    again, replayed = Idempotency(database).once(Tenant("default"), "k", "print", create)
    assert (again.object, replayed) == ("job_1", True)
    Idempotency(database).once(Tenant("default"), "new", "print", create)
    with database.read() as connection:
        query = "SELECT status, body FROM idempotency WHERE key = 'new'"
        assert tuple(connection.exec_driver_sql(query).one()) == (201, "{}"), "it is answered there, too"


def test_a_table_is_made_anew_without_losing_what_refers_to_it(database: Database) -> None:
    insert_inputs(database)
    job = Jobs(database, Events(database)).create(Tenant("default"), spec(), None, {"team": "vision"}).id
    with database.migrating() as connection:
        blob_guard.remove(connection)
        with Operations(MigrationContext.configure(connection)).batch_alter_table("jobs") as table:
            table.alter_column(
                "name", existing_type=String(256), type_=String(512)
            )  # SQLite: a copy, and the old one goes
    with database.read() as connection:
        for parts in (events, job_inputs, job_metadata):
            assert connection.execute(select(parts.c.job)).scalars().first() == job, parts.name
    with database.write() as connection, pytest.raises(IntegrityError):
        connection.execute(update(jobs).values(dataset="ds_2"))


def test_jobs_that_chose_by_windows_stay_readable(database: Database) -> None:
    insert_inputs(database)
    repository = Jobs(database, Events(database))
    auto = METHODS.validate_python({"type": "auto", "epochs": 3, "lr": 0.1, "control_lr": 0.2})
    job, other = (repository.create(Tenant("default"), spec(**one), None, {}).id for one in ({"method": auto}, {}))
    with database.write() as connection:
        stored = connection.execute(select(jobs.c.spec).where(jobs.c.id == job)).scalar_one()
        regime = {"ratio": 0.25, "lr": 0.3, "pull": 0.1}
        old = {"type": "auto", "epochs": 3, "lr": 0.1, "control_lr": 0.2, "hold": 0.5, "low": 0.1, "guard": False}
        old |= {"segments": 6, "memorised": regime, "settled": regime | {"ratio": 0.5}, "average": "window"}
        connection.execute(update(jobs).where(jobs.c.id == job).values(spec=stored | {"method": old}))
    downgrade(database, "0001")
    upgrade(database)
    found = repository.get(Tenant("default"), job).spec.method
    assert isinstance(found, AutoMethod)
    assert (found.epochs, found.segments, found.lr, found.control_lr, found.guard) == (3, 6, 0.1, 0.2, False)
    assert (found.memorised.ratio, found.memorised.pull, found.settled.ratio) == (0.25, 0.1, 0.5)
    assert found.probe_rate is False
    assert repository.get(Tenant("default"), other).spec == spec()


def test_a_migration_that_breaks_a_reference_changes_nothing(tmp_path: Path) -> None:
    database = Database(f"sqlite:///{tmp_path / 'wbar.db'}")
    upgrade(database)
    insert_inputs(database)
    Jobs(database, Events(database)).create(Tenant("default"), spec(), None, {})
    with (
        pytest.raises(
            IntegrityError, match="1 rows refer to rows that do not exist, the first of them in jobs to datasets"
        ),
        database.migrating() as connection,
    ):
        connection.execute(delete(datasets))
    with database.read() as connection:
        assert connection.execute(select(datasets.c.id)).scalars().all() == ["ds_1"]
    database.dispose()


def test_every_reference_to_a_blob_has_an_index() -> None:
    indexed = {index.columns.values()[0] for table in metadata.tables.values() for index in table.indexes}
    assert set(REFERENCES) <= indexed


def test_every_object_belongs_to_a_tenant() -> None:
    owned = {"api_keys", "sessions", "checkpoints", "datasets", "jobs", "idempotency"}
    owned |= {"webhooks", "webhook_deliveries", "resumable_uploads", "merges", "studies"}
    assert {name for name, table in metadata.tables.items() if "tenant" in table.c} == owned
    parts_of_a_job = {name for name, table in metadata.tables.items() if "job" in table.c}
    assert set(metadata.tables) == owned | parts_of_a_job | {"upload_parts", "merge_inputs"} | {
        "blobs",
        "workers",
        "counters",
        "architectures",
    }


def test_reading_then_writing_never_fails_locked(database: Database) -> None:
    with database.write() as connection:
        connection.execute(insert(workers).values(name="w", queue="train", device="cpu", slots=0, seen_at=0.0))

    def raise_by_one() -> None:
        for _ in range(25):
            with database.write() as connection:
                slots = connection.execute(select(workers.c.slots).with_for_update()).scalar_one()
                connection.execute(update(workers).values(slots=slots + 1))

    threads = [threading.Thread(target=raise_by_one) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    with database.read() as connection:
        assert connection.execute(select(workers.c.slots)).scalar_one() == 100


def test_calls_in_one_block_are_one_transaction(database: Database) -> None:
    keys = Keys(database)

    def fail() -> None:
        with database.write():
            keys.create("x", key="k")
            keys.create("y", key="l")
            assert keys.valid("k") is not None, "the block sees what it wrote"
            raise RuntimeError("no")

    with pytest.raises(RuntimeError, match="no"):
        fail()
    assert keys.valid("k") is None
    assert keys.valid("l") is None
    with database.write():
        keys.create("x", key="k")
        keys.create("y", key="l")
    assert keys.valid("l") is not None


def test_a_block_belongs_to_its_thread(database: Database) -> None:
    keys, seen = Keys(database), list[object]()
    with database.write():
        keys.create("x", key="k")
        other = threading.Thread(target=lambda: seen.append(keys.valid("k")))
        other.start()
        other.join()
    assert seen == [None]


def test_a_write_inside_a_read_is_refused(database: Database) -> None:
    with database.read(), pytest.raises(RuntimeError, match=r"open the block with write\(\)"):
        Keys(database).create("x")
    assert Keys(database).create("x").key.startswith("wbar_")


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


def test_an_id_says_what_it_names() -> None:
    assert [kind_of(one) for one in (new_id("ckpt"), "ds_1", "job_", "jobs_1", "", "evil")] == [
        "ckpt", "ds", "job", None, None, None,
    ]  # fmt: skip


def test_keys_open_one_tenant_and_are_not_kept(database: Database) -> None:
    keys = Keys(database)
    issued = keys.create("x", Tenant("acme"), ("read",))
    found = keys.valid(issued.key)
    assert found is not None
    assert (found.owner, found.scopes, found.last_used_at) == (Tenant("acme"), ("read",), None)
    assert keys.valid(issued.key + "x") is None
    keys.used(found.id)
    assert keys.get(Tenant("acme"), found.id).last_used_at is not None
    with database.read() as connection:
        assert issued.key not in str(connection.execute(select(api_keys)).all())


def test_a_key_ends_with_a_checksum_that_is_looked_at_before_the_database(database: Database) -> None:
    key = Keys(database).create("x").key
    assert re.fullmatch(r"wbar_[0-9A-Za-z]{38}", key)
    statements = list[str]()
    event.listen(database.engine, "before_cursor_execute", lambda *given: statements.append(given[2]))
    mistyped = key[:10] + ("a" if key[10] != "a" else "b") + key[11:]
    for wrong in (mistyped, key[:-1] + ("0" if key[-1] != "0" else "1"), "wbar_" + "ä" * 38, "x" * 10_000):
        assert Keys(database).valid(wrong) is None
    assert statements == []
    assert Keys(database).valid("wbar_of-version-0.5") is None
    assert len(statements) == 1


def test_a_key_expires_and_is_revoked(database: Database) -> None:
    keys, mine = Keys(database), Tenant("default")
    short, long, revoked = (keys.create("x", lifetime=seconds) for seconds in (60.0, 120.0, None))
    with database.write() as connection:
        connection.execute(update(api_keys).values(expires_at=api_keys.c.expires_at - 60.0))
    assert keys.valid(short.key) is None
    assert keys.valid(long.key) is not None
    with pytest.raises(NotFound):
        keys.revoke(Tenant("other"), revoked.record.id)
    assert keys.valid(revoked.key) is not None
    keys.revoke(mine, revoked.record.id)
    assert keys.valid(revoked.key) is None
    with pytest.raises(NotFound):
        keys.revoke(mine, revoked.record.id)


def test_workers_are_live_while_they_are_seen(database: Database) -> None:
    live, one = Workers(database), WorkerRecord("train-1@here", "train", "cuda", 2)
    assert live.live() == []
    live.seen(one)
    live.seen(one)
    assert live.live() == [one]
    with database.write() as connection:
        connection.execute(update(workers).values(seen_at=now() - 60))
    assert live.live() == []
    live.seen(one)
    live.gone(one.name)
    assert live.live() == []


def test_an_idempotency_key_answers_once(database: Database) -> None:
    tenant, store, made = Tenant("default"), Idempotency(database), list[str]()

    def create() -> FirstAnswer:
        made.append(f"job_{len(made)}")
        return FirstAnswer(made[-1], "{}")

    assert store.once(tenant, "k", "print", create) == (FirstAnswer("job_0", "{}"), False)
    assert store.once(tenant, "k", "print", create) == (FirstAnswer("job_0", "{}"), True)
    with pytest.raises(IdempotencyKeyReused):
        store.once(tenant, "k", "another print", create)
    assert store.once(Tenant("other"), "k", "print", create) == (FirstAnswer("job_1", "{}"), False)
    with database.write() as connection:
        connection.execute(update(idempotency).values(created_at=now() - 25 * 3600))
    assert store.once(tenant, "k", "another print", create) == (FirstAnswer("job_2", "{}"), False)


def test_many_requests_with_one_key_create_one_object(database: Database) -> None:
    tenant, store, made, answers = (
        Tenant("default"),
        Idempotency(database),
        list[int](),
        list[tuple[FirstAnswer, bool]](),
    )

    def create() -> FirstAnswer:
        made.append(1)
        return FirstAnswer(f"job_{len(made)}", "{}")

    threads = [
        threading.Thread(target=lambda: answers.append(store.once(tenant, "k", "print", create))) for _ in range(20)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(made) == 1
    assert sorted(replayed for _, replayed in answers) == [False] + [True] * 19
    assert {answer.object for answer, _ in answers} == {"job_1"}


def test_a_creation_that_fails_leaves_the_key_free(database: Database) -> None:
    store = Idempotency(database)

    def fail() -> FirstAnswer:
        raise RuntimeError("no")

    with pytest.raises(RuntimeError, match="no"):
        store.once(Tenant("default"), "k", "print", fail)
    answer = FirstAnswer("job_1", "{}")
    assert store.once(Tenant("default"), "k", "print", lambda: answer) == (answer, False)


def test_postgresql_ends_the_transaction_of_a_client_that_is_silent(database: Database) -> None:
    if database.engine.dialect.name != "postgresql":
        pytest.skip("an SQLite file stays locked for as long as the process that locked it is frozen")
    with database.read() as connection:
        assert connection.execute(text("SHOW idle_in_transaction_session_timeout")).scalar() == "15s"
