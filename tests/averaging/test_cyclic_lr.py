"""The schedule is a pure function of the step; one whole cycle is written out by hand."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from averaging import CyclicSchedule
from tests.averaging import reference


def test_one_whole_cycle_by_hand() -> None:
    plan = CyclicSchedule(cycles=2, high_lr=0.1, low_lr=0.01, high_epochs=1, low_epochs=2, steps_per_epoch=2)
    assert plan.total_steps == 12
    rows = [
        (at.step, at.cycle, at.phase, at.epoch, at.step_in_epoch, at.lr, at.ends_phase, at.ends_cycle)
        for at in map(plan.at, range(7))
    ]
    assert rows == [
        (0, 1, "high", 1, 0, 0.1, False, False),
        (1, 1, "high", 1, 1, 0.1, True, False),
        (2, 1, "low", 2, 0, 0.01, False, False),
        (3, 1, "low", 2, 1, 0.01, False, False),
        (4, 1, "low", 3, 0, 0.01, False, False),
        (5, 1, "low", 3, 1, 0.01, True, True),
        (6, 2, "high", 4, 0, 0.1, False, False),
    ]


@given(st.integers(1, 4), st.integers(1, 3), st.integers(1, 3), st.integers(1, 5))
@settings(max_examples=50, deadline=None)
def test_equals_the_loops_it_stands_for(cycles: int, high: int, low: int, steps: int) -> None:
    plan = CyclicSchedule(cycles, 0.3, 0.02, high, low, steps)
    found = [(at.cycle, at.phase, at.epoch, at.lr) for at in map(plan.at, range(plan.total_steps))]
    assert found == reference.schedule(cycles, 0.3, 0.02, high, low, steps)
    ends = [at.step for at in map(plan.at, range(plan.total_steps)) if at.ends_cycle]
    assert ends == [(n + 1) * plan.steps_per_cycle - 1 for n in range(cycles)]


@pytest.mark.parametrize("step", [-1, 12])
def test_a_step_outside_is_an_error(step: int) -> None:
    with pytest.raises(IndexError):
        CyclicSchedule(2, 0.1, 0.01, 1, 2, 2).at(step)


@pytest.mark.parametrize("wrong", [{"cycles": 0}, {"high_lr": 0.0}, {"low_lr": -1.0}, {"steps_per_epoch": 0}])
def test_numbers_that_make_no_schedule_are_refused(wrong: dict[str, float]) -> None:
    good = {"cycles": 1, "high_lr": 0.1, "low_lr": 0.1, "high_epochs": 1, "low_epochs": 1, "steps_per_epoch": 1}
    with pytest.raises(ValueError, match=next(iter(wrong))):
        CyclicSchedule(**{**good, **wrong})  # type: ignore[arg-type]
