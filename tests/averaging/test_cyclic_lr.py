"""The schedule is a pure function of the step; one whole cycle is written out by hand."""

from math import cos, pi

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.averaging import reference
from wbar_averaging import CyclicSchedule, CyclicScheduleLR


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
        CyclicSchedule(**{**good, **wrong})  # type: ignore[arg-type]  # one field of many types


def high_phase(**shape: object) -> list[float]:
    """Two epochs of four steps from 0.8 to 0.08."""
    plan = CyclicSchedule(1, 0.8, 0.08, high_epochs=2, low_epochs=1, steps_per_epoch=4, **shape)  # type: ignore[arg-type]  # any of them
    rates = [plan.at(step).lr for step in range(plan.total_steps)]
    assert rates[8:] == [0.08] * 4
    return rates[:8]


@pytest.mark.parametrize(
    ("shape", "expected"),
    [
        ({}, [0.8] * 8),
        ({"shape": "linear"}, [0.8 - 0.72 * i / 7 for i in range(8)]),
        ({"shape": "cosine"}, [0.08 + 0.72 * (1 + cos(pi * i / 7)) / 2 for i in range(8)]),
        ({"shape": "exponential"}, [0.8 * 0.98 ** (i / 4) for i in range(8)]),
        ({"shape": "exponential", "gamma": 0.5}, [0.8 * 0.5 ** (i / 4) for i in range(8)]),
        ({"shape": "step"}, [0.8] * 4 + [0.08] * 2 + [0.008] * 2),
        ({"shape": "step", "milestones": [0.25]}, [0.8] * 2 + [0.08] * 6),
        ({"shape": "sawtooth"}, [0.8, 0.536, 0.272, 0.008] * 2),
        ({"shape": "poly"}, [0.08 + 0.72 * (1 - i / 7) ** 0.9 for i in range(8)]),
        ({"warmup_steps": 3}, [0.32, 0.56, 0.8] + [0.8] * 5),
        ({"warmup_steps": 3, "warmup": "constant"}, [0.08] * 3 + [0.8] * 5),
        ({"warmup_steps": 2, "shape": "linear"}, [0.44, 0.8] + [0.8 - 0.72 * i / 5 for i in range(6)]),
        ({"warmup_steps": 8}, [0.08 + 0.09 * i for i in range(1, 9)]),
    ],
)
def test_every_shape_by_its_formula(shape: dict[str, object], expected: list[float]) -> None:
    assert high_phase(**shape) == pytest.approx(expected)


def test_phases_in_steps() -> None:
    plan = CyclicSchedule.in_steps(cycles=2, high_lr=0.5, low_lr=0.1, high_steps=3, low_steps=2, shape="linear")
    assert [plan.at(step).lr for step in range(10)] == pytest.approx([0.5, 0.3, 0.1, 0.1, 0.1] * 2)
    assert [plan.at(step).cycle for step in range(10)] == [1] * 5 + [2] * 5


@pytest.mark.parametrize(
    "wrong", [{"shape": "round"}, {"warmup": "sudden"}, {"warmup_steps": 9}, {"milestones": [1.5]}, {"gamma": 0.0}]
)
def test_shapes_that_make_no_schedule_are_refused(wrong: dict[str, object]) -> None:
    with pytest.raises(ValueError, match=next(iter(wrong))):
        high_phase(**wrong)


def test_as_a_torch_scheduler_groups_keep_their_ratios_and_one_integer_resumes() -> None:
    plan = CyclicSchedule(2, 0.4, 0.1, 1, 1, 3, shape="cosine", warmup_steps=1)

    def fresh() -> tuple[torch.optim.Optimizer, CyclicScheduleLR]:
        parameters = [torch.nn.Parameter(torch.zeros(1)) for _ in range(2)]
        optimizer = torch.optim.SGD([{"params": parameters[:1], "lr": 1.0}, {"params": parameters[1:], "lr": 0.1}])
        return optimizer, CyclicScheduleLR(optimizer, plan)

    optimizer, schedule = fresh()
    for step in range(plan.total_steps):
        if step == 5:
            state = schedule.state_dict()
            assert state == {"last_epoch": 5}
            optimizer, schedule = fresh()
            schedule.load_state_dict(state)
        assert [group["lr"] for group in optimizer.param_groups] == pytest.approx(
            [plan.at(step).lr, 0.1 * plan.at(step).lr]
        )
        optimizer.step()
        schedule.step()
    assert optimizer.param_groups[0]["lr"] == plan.at(plan.total_steps - 1).lr
    schedule.step()
    assert schedule.get_last_lr()[0] == plan.low_lr
