"""A quick slice of the kill matrix, on SQLite: one fault of each kind that takes seconds. `make faults` does the whole one."""

from collections.abc import Iterator

import pytest

from tests.faults.acting import FAULTS
from tests.faults.plans import Plan, drawn, matrix
from tests.faults.tenancy import Tenancy, possible

SLICE = [
    ("kill-worker", "snapshot-row", "after"),
    ("kill-api", "api-create", "after"),
    ("cancel", "phase-low", "before"),
    ("pause", "publish-high", "before"),
    ("freeze", "result-row", "before"),
    ("race", "claim", "before"),
    ("memory-killed", "phase-loading", "before"),
    ("disk-full-scratch", "state-file", "before"),
    ("kill-api", "parts-offset", "after"),
    ("kill-sweeper", "send-post", "after"),
]


@pytest.fixture(scope="module")
def tenancy() -> Iterator[Tenancy]:
    made = Tenancy("sqlite", apart=False)
    yield made
    assert made.house.stop() == [], "processes were left after the stop"


LONG = ("kill-worker", "memory-killed", "freeze", "disk-full-scratch", "kill-sweeper")


@pytest.mark.parametrize(
    ("kind", "point", "when"), [pytest.param(*one, marks=pytest.mark.long if one[0] in LONG else ()) for one in SLICE]
)
def test_a_fault_changes_nothing_of_the_result(tenancy: Tenancy, kind: str, point: str, when: str) -> None:
    (work,) = [cell[3] for cell in matrix("sqlite") if cell[:3] == (kind, point, when)]
    index = SLICE.index((kind, point, when))
    plan = Plan(0, index, kind, point, "after" if when == "after" else "before", work, 1, 0.3)
    if not possible(plan, tenancy.house):
        pytest.skip("this machine does not let the tests do that")
    outcome = tenancy.trial(plan)
    assert outcome.violations == ()
    assert outcome.reached


def test_the_plans_are_a_function_of_the_seed() -> None:
    first, second = drawn(3, "postgresql"), drawn(3, "postgresql")
    plans = [next(first) for _ in range(600)]
    assert plans == [next(second) for _ in range(600)]
    assert {(one.kind, one.point, one.when, one.work) for one in plans} == set(matrix("postgresql"))
    assert {kind for kind, *_ in matrix("postgresql")} <= set(FAULTS)
