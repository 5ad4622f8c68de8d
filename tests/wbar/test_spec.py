"""A spec as it is stored: what a worker of the version before does not know is left out where it says nothing."""

from dataclasses import replace
from typing import Any

import pytest

from tests.store.rows import spec
from wbar.catalog import ARCHITECTURES
from wbar.method import METHODS, Interpolate
from wbar.spec import EvaluationSet, JobSpec, StoredDataset

SWA = {"type": "swa", "lr": 0.1, "control_lr": 0.1, "anneal_from": 0.1}


@pytest.mark.parametrize("method", [None, SWA, {"type": "soup", "checkpoints": ["a", "b"]}])
def test_a_spec_that_asks_for_nothing_new_is_stored_as_it_was(method: dict[str, Any] | None) -> None:
    made = spec() if method is None else spec().model_copy(update={"method": METHODS.validate_python(method)})
    document = made.document()
    assert not {"evaluation", "select_on", "probe"} & document.keys()
    assert not {"interpolate", "swad"} & document["method"].keys()
    assert JobSpec.model_validate(document) == made


def test_what_is_new_and_asked_for_is_stored_and_read_again() -> None:
    method = METHODS.validate_python(SWA | {"swad": {"tolerance": 2}, "interpolate": {"choose": 0.5}})
    sets = (EvaluationSet(name="sketch", dataset=StoredDataset(id="ds_2", sha256="2" * 64, blob="3" * 64)),)
    made = spec().model_copy(update={"method": method, "evaluation": sets, "select_on": "sketch"})
    assert JobSpec.model_validate(made.document()) == made
    assert "3" * 64 in made.blobs()
    assert "ds_2" in made.needs()


def test_probe_images_are_read_and_needed_and_change_no_digest() -> None:
    probe = StoredDataset(id="ds_2", sha256="2" * 64, blob="3" * 64)
    made = spec().model_copy(update={"probe": probe})
    assert JobSpec.model_validate(made.document()) == made
    assert "3" * 64 in made.blobs()
    assert "ds_2" in made.needs()
    assert made.run_digest() == spec().run_digest()


def test_a_set_that_chooses_is_part_of_the_runs_digest_and_others_are_not() -> None:
    sets = (EvaluationSet(name="sketch", dataset=StoredDataset(id="ds_2", sha256="2" * 64, blob="3" * 64)),)
    scored = spec().model_copy(update={"evaluation": sets})
    assert scored.run_digest() == spec().run_digest()
    assert scored.model_copy(update={"select_on": "sketch"}).run_digest() != spec().run_digest()


def test_what_the_same_bytes_are_taken_for_is_part_of_the_runs_digest() -> None:
    made = spec()
    taken = made.model_copy(update={"network": replace(made.network, name="resnet32")})
    packed = made.model_copy(update={"dataset": made.dataset.model_copy(update={"blob": "9" * 64})})
    assert len({one.run_digest() for one in (made, taken, packed)}) == 3
    entered = made.model_copy(update={"network": replace(made.network, entry=ARCHITECTURES["resnet20"])})
    assert entered.run_digest() == made.run_digest()  # what a worker says of a network changes no weight


def test_the_points_of_a_line_have_the_mean_and_a_fixed_alpha_among_them() -> None:
    assert Interpolate().points() == [n / 10 for n in range(11)]
    assert Interpolate(alphas=[0.5, 0, 0.5], choose=0.25).points() == [0, 0.25, 0.5, 1]
    for wrong in ({"alphas": []}, {"alphas": [1.5]}, {"choose": -0.1}, {"choose": "best"}, {"alphas": [True]}):
        with pytest.raises(ValueError, match="interpolate"):
            METHODS.validate_python({"interpolate": wrong})
