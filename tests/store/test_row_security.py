"""The second wall between tenants, on PostgreSQL: what a query finds that forgot its filter."""

import logging
from collections.abc import Iterator
from contextvars import copy_context
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import Select, Table, bindparam, delete, func, insert, select, text, update
from sqlalchemy.exc import ProgrammingError

from tests.conftest import POSTGRESQL, fresh_database
from tests.service.app import app_in
from tests.store.rows import SCORE, insert_inputs, point, spec
from wbar.job_request import JobRequest
from wbar.merges import MeanMerge, MergeSource, MergeSpec
from wbar.studies import StudyRequest, StudySettings
from wbar_store import database as store_database
from wbar_store.blobs import Blobs, Part
from wbar_store.claims import Claim
from wbar_store.database import Database, Tenant, now
from wbar_store.ids import new_id
from wbar_store.keys import Keys
from wbar_store.migrate import upgrade
from wbar_store.repository import PageRequest
from wbar_store.row_security import (
    OF_A_JOB,
    OF_A_MERGE,
    OF_A_STUDY,
    OF_A_TENANT,
    OF_AN_UPLOAD,
    OF_NOBODY,
    ROLE,
    act_for,
)
from wbar_store.store import Store
from wbar_store.tables import blobs, checkpoints, datasets, idempotency, job_files, jobs, metadata, snapshots

OURS, THEIRS = Tenant("ours"), Tenant("theirs")
needs_postgresql = pytest.mark.skipif(POSTGRESQL is None, reason="WBAR_TEST_POSTGRESQL_URL names no PostgreSQL")


def as_tenant(tenant: Tenant, function: Any, *arguments: Any) -> Any:
    """Call the function in a context that serves this tenant, as a request's is."""

    def inside() -> Any:
        act_for(tenant.name)
        return function(*arguments)

    return copy_context().run(inside)


@pytest.fixture
def url(tmp_path: Path) -> Iterator[str]:
    with fresh_database("postgresql", tmp_path) as found:
        yield found


@pytest.fixture
def store(url: str, tmp_path: Path) -> Iterator[Store]:
    """One object of each kind for either tenant."""
    database = Database(url)
    upgrade(database)
    made = Store(database, Blobs(f"file://{tmp_path / 'blobs'}", database), None)  # type: ignore[arg-type]
    for tenant in (OURS, THEIRS):
        insert_inputs(database, tenant.name)
        with database.write() as connection:  # the same ids are wanted for both
            for table in (checkpoints, datasets):
                ours = update(table).where(table.c.tenant == tenant.name)
                connection.execute(ours.values(id=table.c.id + f"_{tenant.name}"))
        job = made.jobs.create(tenant, spec(f"ckpt_1_{tenant.name}", dataset=dataset_of(tenant)), None, {"team": "x"})
        made.attempts.claim(job.id, 60)
        made.metrics.add(Claim(job.id, 1), [point(1)])
        made.sessions.begin(made.keys.create("key", tenant).record)
        made.deliveries.ping(tenant, made.webhooks.create(tenant, "https://example.com/", ("*",)).id)
        upload = made.uploads.create(tenant, 10, "", 60)
        source = MergeSource(id=f"ckpt_1_{tenant.name}", sha256="a" * 64)
        made.merges.create(
            tenant, MergeSpec(sources=(source,), base=None, method=MeanMerge(), dtype=None), None, 1, None
        )
        study = made.studies.create(tenant, StudyRequest(job=JobRequest(checkpoint="c", dataset="d"), seeds=[0]))
        made.studies.add(study.id, [(job.id, StudySettings(seed=0))])
        made.uploads.append(tenant, upload.id, 0, Part(f"parts/{tenant.name}", 5), 60)
        with database.write() as connection:
            values = {"job": job.id, "n": 1, "step": 1, "metrics": SCORE.model_dump(), "bytes": 1, "sha256": "a" * 64}
            connection.execute(insert(snapshots).values(id=new_id("snap"), created_at=now(), **values))
            connection.execute(insert(job_files).values(job=job.id, name="onnx", sha256="b" * 64))
            used = {"key": "k", "fingerprint": "f", "object": job.id, "body": "{}", "created_at": now()}
            connection.execute(insert(idempotency).values(tenant=tenant.name, **used))
    yield made
    database.dispose()


def dataset_of(tenant: Tenant) -> Any:
    return spec().dataset.model_copy(update={"id": f"ds_1_{tenant.name}"})


def test_every_table_is_behind_the_wall_or_is_nobodys() -> None:
    named = [table.name for table in (*OF_A_TENANT, *OF_A_JOB, *OF_AN_UPLOAD, *OF_A_MERGE, *OF_A_STUDY, *OF_NOBODY)]
    assert sorted(named) == sorted(metadata.tables)
    assert all("tenant" in table.c for table in OF_A_TENANT)
    assert all("job" in table.c for table in OF_A_JOB)
    assert all("upload" in table.c for table in OF_AN_UPLOAD)
    assert all("merge" in table.c for table in OF_A_MERGE)
    assert all("study" in table.c for table in OF_A_STUDY)


def count(store: Store, table: Table) -> int:
    with store.database.read() as connection:
        return int(connection.execute(select(func.count()).select_from(table)).scalar_one())


@needs_postgresql
@pytest.mark.parametrize(
    "table", [*OF_A_TENANT, *OF_A_JOB, *OF_AN_UPLOAD, *OF_A_MERGE, *OF_A_STUDY], ids=lambda table: table.name
)
def test_a_query_without_a_filter_finds_one_tenants_rows(store: Store, table: Table) -> None:
    everything, ours = count(store, table), as_tenant(OURS, count, store, table)
    assert ours >= 1
    assert everything == 2 * ours
    assert as_tenant(Tenant("nobody"), count, store, table) == 0


@needs_postgresql
def test_a_write_without_a_filter_changes_one_tenants_rows(store: Store) -> None:
    def rename() -> int:
        with store.database.write() as connection:
            return connection.execute(update(checkpoints).values(name="changed")).rowcount

    def remove() -> int:
        with store.database.write() as connection:
            return connection.execute(delete(jobs)).rowcount

    assert as_tenant(OURS, rename) == 1
    assert as_tenant(OURS, remove) == 1
    with store.database.read() as connection:
        assert connection.execute(select(checkpoints.c.name).where(checkpoints.c.tenant == "theirs")).scalar() == "x"
        assert list(connection.execute(select(jobs.c.tenant)).scalars()) == ["theirs"]


@needs_postgresql
def test_a_row_for_another_tenant_is_refused(store: Store) -> None:
    with pytest.raises(ProgrammingError, match="row-level security"):
        as_tenant(OURS, store.keys.create, "smuggled", THEIRS)
    their_job = _job_of(store, THEIRS)

    def add() -> None:
        with store.database.write() as connection:
            connection.execute(insert(metadata.tables["job_inputs"]).values(job=their_job, input="ckpt_x"))

    with pytest.raises(ProgrammingError, match="row-level security"):
        as_tenant(OURS, add)


def _job_of(store: Store, tenant: Tenant) -> str:
    with store.database.read() as connection:
        return str(connection.execute(select(jobs.c.id).where(jobs.c.tenant == tenant.name)).scalar_one())


@needs_postgresql
def test_what_is_decided_by_all_rows_sees_all_rows(store: Store, tmp_path: Path) -> None:
    path = tmp_path / "content"
    path.write_bytes(b"theirs")
    with store.blobs.keep(store.blobs.put_file(path)) as digest, store.database.write() as connection:
        connection.execute(update(jobs).where(jobs.c.tenant == "theirs").values(weights=digest))
    assert as_tenant(OURS, store.blobs.collect, [digest]) == 0
    assert as_tenant(OURS, store.blobs.collect) == 0
    assert store.blobs.size(digest) == 6
    assert as_tenant(OURS, count, store, blobs) == 1  # of nobody: deduplicated content has no owner


@needs_postgresql
def test_a_tenant_deletes_a_checkpoint_and_then_its_job(store: Store) -> None:
    job = _job_of(store, OURS)
    with store.database.write() as connection:
        connection.execute(update(jobs).where(jobs.c.id == job).values(status="cancelled"))
    as_tenant(OURS, store.checkpoints.remove, OURS, "ckpt_1_ours")  # hidden: the job names it
    assert as_tenant(OURS, count, store, checkpoints) == 0
    assert count(store, checkpoints) == 2
    as_tenant(OURS, store.jobs.remove, OURS, job)
    assert count(store, checkpoints) == 1


@needs_postgresql
def test_the_dataset_of_a_former_job_is_found_though_it_was_deleted(store: Store) -> None:
    """A teacher's class order is compared with a student's, also where its dataset is hidden by now."""
    job = _job_of(store, OURS)
    summary = {"classes": ["a", "b"], "image": {"channels": 1, "height": 8, "width": 8}, "many_sizes": False}
    summary |= {"splits": {"train": {"images": 2}, "val": {"images": 2}}, "mean": [0.5], "std": [0.5]}
    summary |= {"warnings": [], "held_out": None}
    with store.database.write() as connection:
        connection.execute(update(datasets).where(datasets.c.tenant == "ours").values(summary=summary))
        connection.execute(update(jobs).where(jobs.c.id == job).values(status="cancelled"))
    as_tenant(OURS, store.datasets.remove, OURS, "ds_1_ours")
    found = as_tenant(OURS, store.datasets.summary_for, OURS, job)
    assert found is not None
    assert found.classes == ["a", "b"]
    assert as_tenant(THEIRS, store.datasets.summary_for, THEIRS, job) is None


@needs_postgresql
def test_the_api_lists_one_tenants_objects_even_without_the_first_wall(
    store: Store, url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def unfiltered(table: Table, *columns: Any) -> Select[Any]:
        return select(*columns).where(bindparam("of_tenant") != "", table.c.id == bindparam("of_id"))

    key = store.keys.create("api", OURS).key
    with app_in(tmp_path, database_url=url) as app:
        monkeypatch.setattr(Tenant, "select", lambda _self, table: select(table))
        monkeypatch.setattr(store_database, "one_row", unfiltered)
        store_database._one_row.cache_clear()
        for path in ("/v1/checkpoints", "/v1/datasets", "/v1/jobs"):
            listed = app.request("GET", path, key=key).json()["data"]
            assert len(listed) == 1, path
        theirs = app.request("GET", f"/v1/jobs/{_job_of(store, THEIRS)}/events", key=key)
        assert theirs.status_code == 404
    store_database._one_row.cache_clear()


@needs_postgresql
def test_installing_again_changes_nothing_and_renews_what_is_old(store: Store) -> None:
    policies = text("SELECT tablename, policyname, qual FROM pg_policies ORDER BY 1, 2")

    def shown() -> list[Any]:
        with store.database.read() as connection:
            return list(connection.execute(policies))

    before = shown()
    upgrade(store.database)
    assert shown() == before
    with store.database.write() as connection:
        connection.execute(text(f"DROP POLICY {before[0].policyname} ON {before[0].tablename}"))
        connection.execute(text(f"CREATE POLICY {ROLE}_old ON {before[0].tablename} USING (true)"))
    upgrade(store.database)
    assert shown() == before


@needs_postgresql
def test_a_user_who_may_make_roles_takes_the_one_that_it_made(url: str, caplog: pytest.LogCaptureFixture) -> None:
    """As the administrators of managed servers: no superuser, with CREATEROLE."""
    admin = Database(url)
    name = f"maker_{url.rsplit('_', 1)[1]}"
    with admin.write() as connection:
        connection.execute(text(f"CREATE ROLE {name} LOGIN CREATEROLE"))
        connection.execute(text(f"GRANT ALL ON SCHEMA public TO {name}"))
    maker = Database(url.replace("//wbar@", f"//{name}@"))
    try:
        with caplog.at_level(logging.WARNING, logger="wbar.store"):
            upgrade(maker)
            Keys(maker).create("key", THEIRS)
            with pytest.raises(ProgrammingError, match="row-level security"):
                as_tenant(OURS, Keys(maker).create, "smuggled", THEIRS)
        assert "no row-level security" not in caplog.text
    finally:
        maker.dispose()
        with admin.write() as connection:
            connection.execute(text(f"DROP OWNED BY {name} CASCADE"))
            connection.execute(text(f"DROP ROLE {name}"))
        admin.dispose()


@needs_postgresql
def test_a_role_without_rights_is_no_wall_and_no_outage(
    store: Store, url: str, caplog: pytest.LogCaptureFixture
) -> None:
    """As after a restore that left the rights out."""
    with store.database.write() as connection:
        connection.execute(text(f"REVOKE ALL ON ALL TABLES IN SCHEMA public FROM {ROLE}"))
    again = Database(url)
    try:
        with caplog.at_level(logging.WARNING, logger="wbar.store"):
            assert as_tenant(OURS, Keys(again).page, OURS, PageRequest()).records
        assert "no row-level security" in caplog.text
    finally:
        again.dispose()


@needs_postgresql
def test_a_user_who_may_not_make_roles_has_one_wall_and_is_told(
    url: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    admin = Database(url)
    name = f"poor_{url.rsplit('_', 1)[1]}"
    with admin.write() as connection:
        connection.execute(text(f"CREATE ROLE {name} LOGIN"))
        connection.execute(text(f"GRANT ALL ON SCHEMA public TO {name}"))
    poor = Database(url.replace("//wbar@", f"//{name}@"))
    try:
        with caplog.at_level(logging.WARNING, logger="wbar.store"):
            upgrade(poor)
            assert f'GRANT {ROLE} TO "{name}"' in caplog.text
            caplog.clear()
            issued = Keys(poor).create("key", OURS)
            assert as_tenant(OURS, Keys(poor).get, OURS, issued.record.id) == issued.record
            assert as_tenant(OURS, Keys(poor).get, OURS, issued.record.id) == issued.record
        assert caplog.text.count("no row-level security") == 1
        with admin.write() as connection:
            connection.execute(text(f"GRANT {ROLE} TO {name}"))  # what the warning said
        upgrade(poor)
        mended = Database(url.replace("//wbar@", f"//{name}@"))
        Keys(mended).create("key", THEIRS)
        with pytest.raises(ProgrammingError, match="row-level security"):
            as_tenant(OURS, Keys(mended).create, "smuggled", THEIRS)
        mended.dispose()
    finally:
        poor.dispose()
        with admin.write() as connection:
            connection.execute(text(f"DROP OWNED BY {name} CASCADE"))
            connection.execute(text(f"DROP ROLE {name}"))
        admin.dispose()
