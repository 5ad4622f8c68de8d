"""The pages of studies without a browser: how far the jobs are, what they measured, and who may do what."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.dashboard.test_pages import MINE, OTHER, sign_in, store_of
from tests.service.app import App, app_in
from tests.store.rows import insert_inputs, point, result, spec
from wbar.jobs import JobRequest
from wbar.studies import StudyRequest, StudySettings
from wbar_store.attempts import ResultBlobs
from wbar_store.claims import Claim
from wbar_store.store import Store


@pytest.fixture
def app(tmp_path: Path) -> Iterator[App]:
    with app_in(tmp_path) as made:
        insert_inputs(store_of(made).database)
        yield made


def study(store: Store) -> tuple[str, list[str]]:
    """A study of three jobs: one has succeeded, one runs, one was deleted."""
    asked = StudyRequest(
        name="a <study>", job=JobRequest(checkpoint="ckpt_1", dataset="ds_1"), seeds=[0, 1, 2], at_once=2
    )
    made = store.studies.create(MINE, asked)
    jobs = [store.jobs.create(MINE, spec(seed=seed), None, {}).id for seed in range(3)]
    store.studies.add(made.id, [(job, StudySettings(batch_size=16, seed=seed)) for seed, job in enumerate(jobs)])
    for job in jobs[:2]:
        store.attempts.claim(job, 60)
        store.metrics.add(Claim(job, 1), [point(1)])
    assert store.attempts.succeed(Claim(jobs[0], 1), result(), ResultBlobs("w" * 64, "p" * 64, None), None)
    store.jobs.move(jobs[2], "cancelled")
    store.jobs.remove(MINE, jobs[2])
    return made.id, jobs


def test_a_page_shows_what_the_jobs_measured(app: App) -> None:
    browser, store = sign_in(app), store_of(app)
    assert "No study yet." in browser.get("/studies").text
    made, jobs = study(store)
    assert "a &lt;study&gt;" in browser.get("/studies").text
    shown = browser.get(f"/studies/{made}").text
    assert "1 deleted, 1 running, 1 succeeded" in shown
    assert f'href="/jobs/{jobs[0]}"' in shown
    assert f'href="/jobs/{jobs[2]}"' not in shown, "it is gone"
    assert "batch 16, seed 1" in shown
    assert f"/v1/studies/{made}/report?format=csv" in shown


def test_a_study_is_steered_from_its_page(app: App) -> None:
    browser, store = sign_in(app), store_of(app)
    made, _ = study(store)
    page = f"/studies/{made}"
    assert browser.post(f"{page}/delete").status_code == 409
    assert browser.post(f"{page}/pause").headers["location"] == page
    assert browser.post(f"{page}/resume").headers["location"] == page
    assert browser.post(f"{page}/resume").status_code == 409
    assert browser.post(f"{page}/cancel").headers["location"] == page
    assert store.studies.shown(MINE, made).counts == {"cancelled": 1, "deleted": 1, "succeeded": 1}
    assert browser.post(f"{page}/delete").headers["location"] == "/studies"
    assert browser.get(page).status_code == 404


def test_a_reader_and_a_stranger_change_nothing(app: App) -> None:
    store = store_of(app)
    made, _ = study(store)
    reader, stranger = sign_in(app, scopes=("read",)), sign_in(app, tenant=OTHER)
    assert 'method="post" action="/studies' not in reader.get(f"/studies/{made}").text
    for action in ("pause", "cancel", "delete"):
        assert reader.post(f"/studies/{made}/{action}").status_code == 403
        # Deleting what is not there (any more) leads back to the list.
        assert stranger.post(f"/studies/{made}/{action}").status_code == (303 if action == "delete" else 404)
    assert made not in stranger.get("/studies").text
    assert stranger.get(f"/studies/{made}").status_code == 404
    assert store.studies.shown(MINE, made).counts == {"deleted": 1, "running": 1, "succeeded": 1}
