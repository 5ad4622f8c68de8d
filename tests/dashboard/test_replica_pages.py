"""The page of a job with replicas without a browser: how far each of them is, and what is done to all at once."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.dashboard.test_pages import MINE, OTHER, sign_in, store_of
from tests.service.app import App, app_in
from tests.store.rows import SCORE, insert_inputs, result, spec
from wbar.method import CyclicSwa
from wbar.spec import Meetings
from wbar_store.attempts import ResultBlobs
from wbar_store.blobs import Received
from wbar_store.claims import Claim
from wbar_store.ids import new_id
from wbar_store.store import Store


@pytest.fixture
def app(tmp_path: Path) -> Iterator[App]:
    with app_in(tmp_path) as made:
        insert_inputs(store_of(made).database)
        yield made


def job_of(store: Store) -> tuple[str, list[str]]:
    """A job of three replicas: one has succeeded, one runs, one waits."""
    replicas = [store.jobs.create(MINE, spec(seed=seed, keeps_mean=True), None, {}).id for seed in range(3)]
    whole = spec(method=CyclicSwa(replicas=3), replicas=tuple(replicas))
    job = store.jobs.create(MINE, whole, None, {})
    for one in replicas[:2]:
        assert store.attempts.claim(one, 60) is not None
    files = ResultBlobs("w" * 64, "p" * 64, None, files={"mean": "m" * 64})
    assert store.attempts.succeed(Claim(replicas[0], 1), result(), files, None)
    return job.id, replicas


def test_the_page_lists_the_replicas_and_steers_them(app: App) -> None:
    browser, store = sign_in(app), store_of(app)
    job, replicas = job_of(store)
    shown = browser.get(f"/jobs/{job}").text
    assert "It waits for them" in shown
    assert all(f'href="/jobs/{one}"' in shown for one in replicas)
    assert "50.0 %" in shown or "50.00 %" in shown or "50.0%" in shown or "50.00%" in shown
    assert f'formaction="/jobs/{job}/pause"' in shown
    assert browser.post(f"/jobs/{job}/pause").status_code == 303
    paused = browser.get(f"/jobs/{job}").text
    assert "Paused with its replicas." in paused
    assert f'formaction="/jobs/{job}/resume"' in paused
    assert store.attempts.claim(replicas[2], 60) is None
    assert browser.post(f"/jobs/{job}/resume").status_code == 303
    assert store.attempts.claim(replicas[2], 60) is not None
    assert browser.post(f"/jobs/{job}/cancel").status_code == 303
    assert [store.jobs.get(MINE, one).status for one in replicas] == ["succeeded", "cancelled", "cancelled"]
    assert "Replicas" not in browser.get(f"/jobs/{replicas[0]}").text
    assert store.jobs.file(store.jobs.get(MINE, replicas[0]), "mean") == "m" * 64
    assert not store.jobs.exists(OTHER, job)


def test_the_page_says_in_which_round_each_replica_is(app: App) -> None:
    browser, store = sign_in(app), store_of(app)
    ids = (new_id("job"), new_id("job"))
    for n, one in enumerate(ids, start=1):
        meetings = Meetings(replicas=ids, number=n, every=2, last=4)
        store.jobs.create(MINE, spec(seed=n, keeps_mean=True, meetings=meetings), None, {}, job_id=one)
    job = store.jobs.create(MINE, spec(method=CyclicSwa(replicas=2, join_every=2), replicas=ids), None, {}).id
    claimed = store.attempts.claim(ids[0], 60)
    assert claimed is not None
    for n in (1, 2):
        assert store.snapshots.add(claimed.claim, n, 10 * n, SCORE, Received("", f"{n}" * 64, 1))
    assert store.attempts.yield_back(claimed.claim, "queued")
    shown = browser.get(f"/jobs/{job}").text
    assert "round 1 of 3, waits to meet the others" in shown
    assert shown.count("round 1 of 3") == 2
