"""The score of every task has its name and its form, wherever a score is written."""

from typing import get_args

import pytest

from tests.store.rows import result
from wbar.comparing import compared
from wbar.datasets import Task
from wbar.display import evaluation, line_of, side_by_side, summary
from wbar.jobs import Event, Job
from wbar.measures import MEASURES, measure_in, measure_of, task_of
from wbar.results import Comparisons, CurvePoint, EvaluatedSet
from wbar.scores import AttributeScore, BoxScore, RegressionScore, Score, TargetScore, mean_score

TARGET = TargetScore(mse=1.0, rmse=1.0, mae=1.0, r2=None)
SCORES: dict[Task, Score] = {
    "classification": Score(accuracy=0.25, loss=1.0, ece=0.1),
    "multilabel": Score(accuracy=0.25, loss=1.0, ece=0.1, average_precision=[None]),
    "attributes": Score(
        accuracy=0.25, loss=1.0, ece=0.1, attributes={"a": AttributeScore(images=0, accuracy=None, loss=None)}
    ),
    "segmentation": Score(accuracy=0.25, loss=1.0, mean_iou=0.0, iou={"a": None}),
    "detection": Score(
        accuracy=0.25,
        loss=1.0,
        boxes=BoxScore(ap=None, ap50=None, ap75=None, ap_small=None, ap_medium=None, ap_large=None, by_class={}),
    ),
    "regression": Score(accuracy=0.25, loss=1.0, regression=RegressionScore(r2=None, by_target={"a": TARGET})),
}
WRITTEN = {
    "classification": "accuracy 25.00%",
    "multilabel": "accuracy 25.00%",
    "attributes": "mean accuracy 25.00%",
    "segmentation": "pixel accuracy 25.00%",
    "detection": "AP 0.2500",
    "regression": "R² 0.2500",
}


def job_with(score: Score) -> Job:
    example = Job.model_validate(Job.model_config["json_schema_extra"]["example"])  # type: ignore[index, call-overload]
    metrics = Comparisons(start=score, start_recomputed=score, last=score, averaged=score, ensemble=None)
    changes = {"metrics": metrics, "curve": [CurvePoint.of(1, score)]}
    sets = {"sketch": EvaluatedSet(images=3, selected_on=False, metrics=metrics)}
    return example.model_copy(update={"result": result().model_copy(update=changes | {"evaluation": sets})})


def test_every_task_that_is_scored_has_a_measure() -> None:
    assert set(MEASURES) == set(get_args(Task)) - {"unlabelled"}
    assert measure_in(None) is measure_in("unlabelled") is MEASURES["classification"]


@pytest.mark.parametrize("task", MEASURES)
def test_a_score_is_written_as_its_task_has_it(task: Task) -> None:
    score = SCORES[task]
    assert task_of(score) == task
    assert measure_of(score).named(score.accuracy) == WRITTEN[task]
    assert measure_of(score).text(None) == "–"


@pytest.mark.parametrize("task", MEASURES)
def test_every_surface_of_the_terminal_writes_it_so(task: Task) -> None:
    score, job = SCORES[task], job_with(SCORES[task])
    name, value = WRITTEN[task].rsplit(" ", 1)
    common = {"id": "event_1", "created_at": "2026-11-21T09:00:00.000000Z"}
    snapshot = Event(type="snapshot", data={"n": 1, "step": 2, "metrics": score.model_dump()}, **common)
    average = Event(type="metrics", data={"n": 1, **score.model_dump()}, **common)
    for line in (line_of(snapshot), line_of(average)):
        assert WRITTEN[task] in line
    assert job.result is not None
    lines = summary(job.result)
    assert any(f"curve (n: {name}/" in line and f"1: {value}/1.0000" in line for line in lines)
    html = job._repr_html_()
    assert f"<th>{name}</th>" in html
    assert f"<td>{value}</td>" in html
    sets = evaluation(job)
    assert sets is not None
    assert str(sets.title).startswith(f"Evaluation sets: {name}, ")
    assert next(iter(sets.columns[1].cells)) == f"{value} 1.0000"


def test_the_mean_of_scores_is_a_score_of_their_task() -> None:
    one = Score(accuracy=0.2, loss=1, regression=RegressionScore(r2=0.2, by_target={}))
    mean = mean_score(
        [one, one.model_copy(update={"accuracy": -0.9, "regression": RegressionScore(r2=-0.9, by_target={})})]
    )
    assert (task_of(mean), mean.accuracy) == ("regression", pytest.approx(-0.35))
    assert mean.regression is not None
    assert mean.regression.r2 == pytest.approx(-0.35)


def test_the_mean_of_scores_of_attributes_is_by_attribute() -> None:
    unknown = AttributeScore(images=0, accuracy=None, loss=None)

    def score(accuracy: float) -> Score:
        known = AttributeScore(images=4, accuracy=accuracy, loss=2 * accuracy)
        return Score(accuracy=accuracy, loss=1, attributes={"a": known, "b": unknown})

    mean = mean_score([score(0.25), score(0.75)])
    assert task_of(mean) == "attributes"
    assert mean.attributes == {"a": AttributeScore(images=4, accuracy=0.5, loss=1.0), "b": unknown}


def test_jobs_of_several_tasks_side_by_side() -> None:
    tables = side_by_side(compared([job_with(SCORES["regression"]), job_with(SCORES["classification"])]))
    named, *columns = (list(column.cells) for column in tables[-1].columns)
    row = named.index("averaged weights w̄, R² / accuracy")
    assert columns[0][row] == "0.2500"
    assert str(columns[1][row]).startswith("25.00% ± ")
