"""Whatever stands in a row, a list of the rows beside it can be read."""

import logging
from typing import Any

import pytest
from sqlalchemy import JSON, Column, String, Table, Text, delete, insert, select, update
from sqlalchemy.exc import DBAPIError

from tests.store.rows import SCORE, insert_inputs, point, spec
from wbar_store import documents
from wbar_store.claims import Claim
from wbar_store.database import Database, Tenant, now
from wbar_store.ids import new_id
from wbar_store.repository import PageRequest
from wbar_store.store import Store
from wbar_store.tables import api_keys, checkpoints, datasets, events, jobs, metrics, snapshots

MINE = Tenant("default")
TEXTS = ["\x00", "=1+1", "\x1b[2J", "", "x" * 16, "�"]
DOCUMENTS = [
    '{"a":"\\ud800"}',
    '"\\udfff"',
    "[]",
    "{}",
    "0",
    '"text"',
    "[[[[]]]]",
    '{"\\u0000":1}',
    "nonsense",
    "1e999",
    "NaN",
]


@pytest.fixture
def store(database: Database) -> Store:
    """Two jobs with an event, a metrics point and a snapshot each; two checkpoints, datasets and keys."""
    opened = Store(database, None, None)  # type: ignore[arg-type]  # nothing is uploaded or notified here
    insert_inputs(database)
    with database.write() as connection:
        for table in (checkpoints, datasets):
            row = connection.execute(select(table)).mappings().one()
            connection.execute(insert(table).values(**{**row, "id": f"{row['id'].rstrip('1')}2"}))
    for name in ("a", "b"):
        opened.keys.create(name)
        job = opened.jobs.create(MINE, spec(), name, {"team": name})
        opened.attempts.claim(job.id, 60)
        opened.metrics.add(Claim(job.id, 1), [point(1)])
        with database.write() as connection:
            values = {"job": job.id, "n": 1, "step": 1, "metrics": SCORE.model_dump(), "bytes": 1, "sha256": "a" * 64}
            connection.execute(insert(snapshots).values(id=new_id("snap"), created_at=now(), **values))
    return opened


def lists(store: Store, job: str) -> dict[Table, list[Any]]:
    """Every list that is sent, as it is sent."""
    page = PageRequest(limit=100)
    return {
        checkpoints: [one.to_api() for one in store.checkpoints.page(MINE, page).records],
        datasets: [one.to_api() for one in store.datasets.page(MINE, page).records],
        jobs: [one.to_api() for one in store.jobs.page(MINE, page).records],
        api_keys: [one.to_api() for one in store.keys.page(MINE, page).records],
        snapshots: [one.to_api() for one in store.snapshots.page(MINE, job, page).records],
        events: documents.readable(store.events.page(MINE, job, page).records, lambda event: event.to_api()),
        metrics: store.metrics.all(MINE, job),
    }


KEYS = ("id", "job", "tenant", "checkpoint", "dataset")  # what a row is found by
COLUMNS = [
    column
    for table in (checkpoints, datasets, jobs, api_keys, snapshots, events, metrics)
    for column in table.c
    if isinstance(column.type, String | Text | JSON) and column.name not in KEYS
]


@pytest.mark.parametrize("column", COLUMNS, ids=str)
def test_no_stored_value_makes_a_list_fail(
    store: Store, database: Database, column: Column[Any], caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.CRITICAL)
    table, job = column.table, store.jobs.page(MINE, PageRequest()).records[0].id
    whole = lists(store, job)
    with database.read() as connection:
        first = connection.execute(select(table).limit(1)).mappings().one()
    this = [table.c[name] == first[name] for name in ("id", "job", "seq", "step", "n") if name in table.c]
    for text in DOCUMENTS if isinstance(column.type, JSON) else TEXTS:
        try:
            with database.write() as connection:
                if isinstance(column.type, JSON):
                    # As text: what our own writer would refuse.
                    cast = "" if database.engine.dialect.name == "sqlite" else "CAST(%s AS JSON)"
                    placeholder = cast or "?"
                    keys = {name: first[name] for name in ("id", "job", "seq", "step", "n") if name in table.c}
                    mark = "?" if not cast else "%s"
                    where = " AND ".join(f"{name} = {mark}" for name in keys)
                    statement = f"UPDATE {table.name} SET {column.name} = {placeholder} WHERE {where}"
                    connection.exec_driver_sql(statement, (text, *keys.values()))
                else:
                    connection.execute(update(table).where(*this).values({column.name: text}))
        except DBAPIError:
            continue  # PostgreSQL takes no NUL and no text that is not JSON
        found = lists(store, job)
        for listed, rows in found.items():
            assert len(rows) >= len(whole[listed]) - (listed is table), (listed.name, text)


def test_a_half_of_a_surrogate_pair_is_shown_as_what_it_is() -> None:
    assert documents.load('{"a\\ud800": ["\\udfff", 1, null]}') == {"a�": ["�", 1, None]}
    assert documents.load(b"nonsense") == "nonsense"
    assert documents.load('"ü 🙂 \\ud83d\\ude42"') == "ü 🙂 🙂"


def test_a_page_that_ends_with_a_row_that_cannot_be_read_goes_on(store: Store, database: Database) -> None:
    with database.write() as connection:
        newest = max(one.id for one in store.keys.page(MINE, PageRequest()).records)
        connection.execute(update(api_keys).where(api_keys.c.id == newest).values(scopes=["root"]))
    page = store.keys.page(MINE, PageRequest(limit=1))
    assert (page.records, page.has_more, page.last_id) == ([], True, newest)
    assert len(store.keys.page(MINE, PageRequest(limit=1, after=page.last_id)).records) == 1
    with database.write() as connection:
        connection.execute(delete(api_keys))
    assert store.keys.page(MINE, PageRequest()).last_id is None
