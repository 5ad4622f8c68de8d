"""The pages without a browser: the score of a job has the name and the form of its task, also once its dataset is gone."""

from collections.abc import Iterator
from pathlib import Path
from typing import get_args

import pytest
from sqlalchemy import update

from tests.dashboard.test_pages import MINE, sign_in, store_of
from tests.service.app import App, app_in
from tests.store.rows import insert_inputs, result, spec
from tests.wbar.test_measures import SCORES
from wbar.datasets import LabelledTask, Task
from wbar.measures import MEASURES
from wbar.results import Comparisons
from wbar_store.attempts import ResultBlobs
from wbar_store.claims import Claim
from wbar_store.tables import datasets


@pytest.fixture
def app(tmp_path: Path) -> Iterator[App]:
    with app_in(tmp_path) as made:
        insert_inputs(store_of(made).database)
        yield made


def ended(app: App, task: Task) -> str:
    """A job of the task that has succeeded."""
    store, score = store_of(app), SCORES[task]
    with store.database.write() as connection:
        connection.execute(update(datasets).values(task=task))
    job = store.jobs.create(MINE, spec(), None, {}).id
    store.attempts.claim(job, 60)
    metrics = Comparisons(start=score, start_recomputed=score, last=score, averaged=score, ensemble=None)
    made = result().model_copy(update={"metrics": metrics})
    assert store.attempts.succeed(Claim(job, 1), made, ResultBlobs("w" * 64, "p" * 64, None), None)
    return job


@pytest.mark.parametrize("task", MEASURES)
def test_job_list_and_comparison_have_the_scores_name(app: App, task: Task) -> None:
    jobs, browser, measure = [ended(app, task), ended(app, task)], sign_in(app), MEASURES[task]
    written = "25.00 %" if measure.is_share else "0.2500"
    store = store_of(app)
    store.datasets.remove(MINE, "ds_1")
    for path in ("/", f"/jobs/{jobs[0]}", f"/compare?job={jobs[0]}&job={jobs[1]}"):
        shown = browser.get(path).text
        assert measure.title in shown, path
        assert written in shown, path
    page = browser.get(f"/jobs/{jobs[0]}").text
    assert f'data-score="{measure.name}"' in page
    assert ("data-share" in page) == measure.is_share


def test_the_page_of_a_job_has_each_attribute(app: App) -> None:
    page = sign_in(app).get(f"/jobs/{ended(app, 'attributes')}").text
    assert "By attribute" in page
    assert '<th scope="row">a</th><td class="number">0</td><td class="number">–, –</td>' in page


def test_jobs_of_several_tasks_have_each_its_own(app: App) -> None:
    store = store_of(app)
    tasks = store.datasets.tasks_for(MINE, [ended(app, "regression"), "job_none"])
    assert list(tasks.values()) == ["regression"]


def test_networks_of_every_task_can_be_asked(app: App) -> None:
    browser = sign_in(app)
    for task in get_args(LabelledTask):
        job = ended(app, task)
        for path in (f"/jobs/{job}", f"/jobs/{job}/ask"):
            assert 'id="ask-form"' in browser.get(path).text, task
        part = browser.get(f"/jobs/{job}/ask").text
        assert "<html" not in part
        assert 'value="swag"' not in part, "it was not asked for"
    assert browser.get("/jobs/job_none/ask").status_code == 404
