"""Merge patches as RFC 7396 has them, and methods of another type."""

from typing import Any

import pytest

from wbar.merge_patch import merged, patched


def test_a_merge_patch_is_that_of_rfc_7396() -> None:
    for target, patch, result in (
        ({"a": "b"}, {"a": "c"}, {"a": "c"}),
        ({"a": "b"}, {"b": "c"}, {"a": "b", "b": "c"}),
        ({"a": "b"}, {"a": None}, {}),
        ({"a": "b", "b": "c"}, {"a": None}, {"b": "c"}),
        ({"a": ["b"]}, {"a": "c"}, {"a": "c"}),
        ({"a": "c"}, {"a": ["b"]}, {"a": ["b"]}),
        ({"a": {"b": "c"}}, {"a": {"b": "d", "c": None}}, {"a": {"b": "d"}}),
        ({"a": [{"b": "c"}]}, {"a": [1]}, {"a": [1]}),
        (["a", "b"], ["c", "d"], ["c", "d"]),
        ({"a": "b"}, ["c"], ["c"]),
        ({"e": None}, {"a": 1}, {"e": None, "a": 1}),
        ([1, 2], {"a": "b", "c": None}, {"a": "b"}),
        ({}, {"a": {"bb": {"ccc": None}}}, {"a": {"bb": {}}}),
    ):
        assert merged(target, patch) == result


@pytest.mark.parametrize(
    ("method", "change", "result"),
    [
        ({"cycles": 3, "pull": 0.1}, {"pull": None}, {"cycles": 3}),
        ({"cycles": 3}, {"type": "cyclic_swa", "pull": 0.1}, {"type": "cyclic_swa", "cycles": 3, "pull": 0.1}),
        ({"cycles": 3}, {"type": "ema", "epochs": 2}, {"type": "ema", "epochs": 2}),
        ({"type": "ema", "epochs": 2}, {"epochs": 3}, {"type": "ema", "epochs": 3}),
        ({"type": "ema", "epochs": 2}, {"type": None}, {}),
        ({"type": "ema", "epochs": 2}, {"type": "cyclic_swa"}, {"type": "cyclic_swa"}),
        (None, {"type": "ema"}, {"type": "ema"}),
    ],
)
def test_another_type_of_method_replaces_the_whole_method(method: Any, change: Any, result: Any) -> None:
    request = {"seed": 1} if method is None else {"seed": 1, "method": method}
    assert patched(request, {"method": change}) == {"seed": 1, "method": result}
