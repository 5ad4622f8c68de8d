"""The requests of replicas: their job's own, with another seed and a name that says which they are."""

import pytest

from wbar.job_request import JobRequest
from wbar.replicas import request_of

INPUTS = {"checkpoint": "ckpt_a", "dataset": "ds_a"}


@pytest.mark.parametrize("name", ["x", "a" * 16 + "=" + "b" * 239, "é" * 256])
def test_a_name_is_shortened_at_its_end(name: str) -> None:
    body = JobRequest.model_validate({**INPUTS, "name": name, "method": {"replicas": 12}})
    found = request_of(body, 3).name
    assert found is not None
    assert found.endswith(": replica 3 of 12")
    assert name.startswith(found.removesuffix(": replica 3 of 12"))
    assert len(found) <= 256


def test_replicas_differ_in_their_seeds_and_are_no_replicas_themselves() -> None:
    body = JobRequest.model_validate(
        {**INPUTS, "seed": 7, "flatness": True, "method": {"replicas": 3, "control": True}}
    )
    made = [request_of(body, n) for n in (1, 2, 3)]
    assert len({one.seed for one in made}) == 3
    assert made[0].seed == 7
    assert [one.method.control for one in made] == [True, False, False]  # type: ignore[union-attr]
    assert {(one.method.replicas, one.flatness) for one in made} == {(1, False)}  # type: ignore[union-attr]
