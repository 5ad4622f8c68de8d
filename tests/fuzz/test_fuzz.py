"""A quick slice of the fuzzer; `make fuzz` runs ten thousand."""

import pickle
import random
from pathlib import Path

import pytest

from tests.fuzz.inputs import Source
from tests.fuzz.pickles import by_global, by_inst, by_stack_global
from tests.fuzz.runner import run, table


def test_hostile_uploads_are_refused_with_a_code_and_leave_nothing() -> None:
    report = run(300, 1)
    assert report.faults == [], table(report)
    assert report.inputs == 300
    assert not any(
        (report.executions, report.crashes, report.hangs, report.left, report.unknown, report.wrongly_accepted)
    )


@pytest.mark.parametrize("payload", [by_global, by_stack_global, by_inst])
def test_the_payloads_run_where_they_are_let(tmp_path: Path, payload: object) -> None:
    for seed in range(6):
        data = payload(Source(random.Random(seed), tmp_path))  # type: ignore[operator]
        try:
            pickle.loads(data)
        except Exception:  # some are broken on purpose
            continue
    assert list(tmp_path.iterdir())
