"""The pages of studies without a browser: how far the jobs are, what they measured, and who may do what."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.dashboard.test_pages import MINE, OTHER, sign_in, store_of
from tests.service.app import App, app_in
from tests.store.rows import insert_inputs, point, result, spec
from wbar.flatness_results import EpochPoint, Flatness, Interpolation, Line
from wbar.job_request import JobRequest
from wbar.loss_surface import Histogram, LossSurface, Rows
from wbar.results import JobResult
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


def measured(loss: float, updates: Histogram) -> JobResult:
    """A result with a surface of nine points, whose middle has this loss, and one epoch's histogram."""
    rows: Rows = [[1.0, None, 4.0], [1.0, loss, 4.0], [1.0, 2.0, 4.0]]
    return result().model_copy(
        update={
            "flatness": Flatness(
                images=8,
                distance=1.0,
                distance_by_layer={"fc": 1.0},
                length_by_layer={"fc": 2.0},
                epochs=[
                    EpochPoint(
                        epoch=1, distance=1.0, distance_from_start=1.0, update_norms=[1.0] * 7, update_histogram=updates
                    )
                ],
                sharpness={"averaged": 1.0},
                top_eigenvalue={},
                interpolation=Interpolation(alphas=[0, 1], train_loss=[1, 1], val_loss=[1, 1], val_accuracy=[1, 1]),
                line=Line(positions=[0], loss={"averaged": [1.0]}),
                surface=LossSurface(
                    positions=[-1, 0, 1],
                    train_images=8,
                    val_images=8,
                    train_loss={"averaged": rows},
                    val_loss={"averaged": rows},
                ),
            )
        }
    )


def test_surfaces_are_drawn_on_one_scale_and_histograms_on_one_axis(app: App) -> None:
    browser, store = sign_in(app), store_of(app)
    request = StudyRequest(job=JobRequest(checkpoint="ckpt_1", dataset="ds_1"), seeds=[0, 1])
    made = store.studies.create(MINE, request)
    jobs = [store.jobs.create(MINE, spec(seed=seed), None, {}).id for seed in range(2)]
    store.studies.add(made.id, [(job, StudySettings(seed=seed)) for seed, job in enumerate(jobs)])
    assert "The loss around" not in browser.get(f"/studies/{made.id}").text
    for job, (loss, first) in zip(jobs, ((0.01, -8), (0.5, 0)), strict=True):
        store.attempts.claim(job, 60)
        store.metrics.add(Claim(job, 1), [point(1)])
        done = measured(loss, Histogram(first=first, counts=[3, 1]))
        assert store.attempts.succeed(Claim(job, 1), done, ResultBlobs("w" * 64, "p" * 64, None), None)
    shown = browser.get(f"/studies/{made.id}").text
    assert "averaged weights w̄, held-out images" in shown
    assert shown.count("0.01 to 4 nats") == 2, "the scale of the training images, and of the held-out ones"
    assert 'aria-label="seed 0: 0.01 nats in the middle, 0.01 to 4 on the grid"' in shown
    # Of the first job the middle is the lowest of all, of the second it is not; the same colour stands for the same loss.
    assert shown.count('<path fill="#00224e" d="M1 1h1v1h-1z"/>') == 2
    assert shown.count('<path fill="#fee838" d="M2 0h1v1h-1zM2 1h1v1h-1zM2 2h1v1h-1z"/>') == 4
    assert shown.count('<path fill="#bbbbbb" d="M1 2h1v1h-1z"/>') == 4, "above: the first row is the lowest y"
    assert 'd="M0 100v-75.0h1v75.0zM1 100v-25.0h1v25.0z"' in shown
    assert 'd="M8 100v-75.0h1v75.0zM9 100v-25.0h1v25.0z"' in shown
    where = f"/v1/studies/{made.id}/report?format=csv&rows="
    updates = browser.get(where + "updates").text.splitlines()
    points = browser.get(where + "surface").text.splitlines()
    report = browser.get(f"/v1/studies/{made.id}/report").json()
    assert updates[0] == "n,job,batch_size,lr,seed,scaling,change,epoch,norm_from,norm_below,updates"
    assert updates[1].startswith(f"1,{jobs[0]},,0.1,0,,,1,0.1,0.133")
    assert len(updates) == 1 + 2 * 2
    assert len(points) == 1 + 2 * 9
    assert points[2].endswith("averaged,0.0,-1.0,,")
    assert report["groups"][0]["update_histogram"] == {"first": -8, "counts": [3, 1, 0, 0, 0, 0, 0, 0, 3, 1]}


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
