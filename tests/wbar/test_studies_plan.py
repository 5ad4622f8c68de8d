"""How long a study takes with several of its jobs at a time."""

import pytest

from wbar.studies import at_a_time


@pytest.mark.parametrize(
    ("seconds", "at_once", "expected"),
    [([1, 2, 3], 1, 6), ([3, 1, 1, 1], 2, 3), ([1, 1, 3], 2, 4), ([2], 8, 2), ([], 3, 0)],
)
def test_jobs_begin_in_their_order_where_a_slot_is_free(seconds: list[float], at_once: int, expected: float) -> None:
    assert at_a_time(seconds, at_once) == expected
