"""What a study varies becomes the jobs that it names: none is lost, and none is called what it is not."""

from typing import Any

import pytest

from wbar.errors import ValidationFailed
from wbar.studies import StudyRequest
from wbar_service.studies.expanding import requests_of

SWA = {"type": "swa", "epochs": 4}


def study(job: dict[str, Any] | None = None, **axes: Any) -> StudyRequest:
    return StudyRequest.model_validate({"job": {"checkpoint": "ckpt_a", "dataset": "ds_a", **(job or {})}, **axes})


@pytest.mark.parametrize("types_first", [False, True])
def test_fields_are_of_the_type_that_is_varied_beside_them(types_first: bool) -> None:
    vary = {"method.pull": [0, 0.1], "method.type": ["swa", "ema"]}
    made = requests_of(study(vary=dict(reversed(vary.items())) if types_first else vary))
    found = {(body.method.type, body.method.pull) for _, body in made}  # type: ignore[union-attr]
    assert found == {("swa", 0), ("swa", 0.1), ("ema", 0), ("ema", 0.1)}
    assert len(made) == 4


def test_scalings_that_give_one_rate_are_one_job() -> None:
    made = requests_of(study(batch_sizes=[64, 128], rates=[0.1], scaling=["none", "linear", "sqrt"], base_batch=128))
    assert [(one.batch_size, one.scaling) for one, _ in made] == [
        (64, ("none",)), (64, ("linear",)), (64, ("sqrt",)), (128, ("none", "linear", "sqrt")),
    ]  # fmt: skip


def test_an_object_that_is_varied_joins_what_the_job_has() -> None:
    job = {"method": {"high": {"epochs": 2}}}
    (_, body), _ = requests_of(study(job, vary={"method.high": [{"lr": 0.1}, {"lr": 0.2}]}))
    assert (body.method.high.epochs, body.method.high.lr) == (2, 0.1)  # type: ignore[union-attr]


@pytest.mark.parametrize(
    ("axes", "message"),
    [
        ({"rates": [0.05], "vary": {"method.lr": [0.1, 0.2]}}, "set method.lr, to 0.1 and 0.05"),
        ({"batch_sizes": [32], "changes": [{"recipe": {"batch_size": 64}}]}, "set recipe.batch_size, to 64 and 32"),
        ({"seeds": [1], "changes": [{"seed": 2}]}, "set seed, to 2 and 1"),
        ({"vary": {"method.type": ["ema"]}, "changes": [{"method": {"type": "lawa"}}]}, "set method.type, to"),
        ({"changes": [{"priority": 1}, {"priority": 1}]}, "the jobs with change 1 and with change 2 are the same"),
    ],
)
def test_axes_that_set_the_same_are_refused(axes: dict[str, Any], message: str) -> None:
    with pytest.raises(ValidationFailed, match=message):
        requests_of(study({"method": SWA}, **axes))


def test_changes_are_of_the_type_that_is_varied_and_what_null_removes_is_set_by_other_axes() -> None:
    pulls = [{"method": {"pull": pull}} for pull in (0, 0.1)]
    made = requests_of(study(changes=pulls, vary={"method.type": ["swa", "ema"]}))
    assert {(body.method.type, body.method.pull) for _, body in made} == {  # type: ignore[union-attr]
        ("swa", 0), ("swa", 0.1), ("ema", 0), ("ema", 0.1),
    }  # fmt: skip
    job = {"method": SWA, "recipe": {"label_smoothing": 0.1}}
    (_, body), _ = requests_of(study(job, changes=[{"recipe": None}], batch_sizes=[32, 64]))
    assert (body.recipe.batch_size, body.recipe.label_smoothing) == (32, 0)
    (_, body), _ = requests_of(study(job, changes=[{"method": None}], rates=[0.1, 0.2]))
    assert body.method.type == "cyclic_swa"
