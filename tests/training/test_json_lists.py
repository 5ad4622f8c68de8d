"""Lists of a JSON document, entry by entry: as Python reads the whole, refused where Python refuses it, in little memory."""

import json
import subprocess
import sys
from math import inf
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from wbar_training.uploads.json_lists import entries

LISTS = ("a", "b")
VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(), inner, max_size=4),
    max_leaves=10,
)
DOCUMENTS = (
    st.fixed_dictionaries({"a": st.lists(VALUES), "b": st.lists(VALUES)}, optional={"c": VALUES, "": VALUES})
    .flatmap(lambda document: st.permutations(list(document.items())))
    .map(dict)
)


def read(text: str) -> dict[str, list[Any]]:
    found: dict[str, list[Any]] = {name: [] for name in LISTS}
    for name, number, entry in entries(text, LISTS):
        assert number == len(found[name])
        found[name].append(entry)
    return found


@given(DOCUMENTS, st.booleans(), st.sampled_from([None, 0, 3]))
def test_entries_are_those_of_the_whole(document: dict[str, Any], escaped: bool, indent: int | None) -> None:
    text = json.dumps(document, ensure_ascii=escaped, indent=indent)
    assert read(text) == {name: document[name] for name in LISTS}


@given(DOCUMENTS, st.data())
def test_what_is_no_json_is_refused(document: dict[str, Any], data: st.DataObject) -> None:
    text = json.dumps(document)
    at = data.draw(st.integers(0, len(text) - 1))
    changed = (
        text[:at] + data.draw(st.sampled_from(['"', "{", "}", "[", "]", ",", ":", "1", "\\", ""])) + text[at + 1 :]
    )
    try:
        whole = json.loads(changed)
    except ValueError:
        with pytest.raises(ValueError):  # noqa: PT011  # as many words as faults
            read(changed)
        return
    pairs = json.loads(changed, object_pairs_hook=lambda pairs: pairs)
    names = [name for name, _ in pairs] if isinstance(whole, dict) else []
    if all(names.count(name) == 1 and isinstance(whole[name], list) for name in LISTS):
        assert read(changed) == {name: whole[name] for name in LISTS}
    else:
        with pytest.raises(ValueError):  # noqa: PT011
            read(changed)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", "Expecting '{'"),
        ("[]", "Expecting '{'"),
        ("{}", "a: Field required"),
        ('{"a": [], "b": [1 2]}', "Expecting ',' or ']'"),
        ('{"a": [], "b": [1,]}', "Expecting value"),
        ('{"a": [], "b": []} x', "Extra data"),
        ('{"a": [], "b": [],}', "Expecting '\"'"),
        ('{"a": [], "b": {}}', "b: Input should be a list"),
        ('{"a": [], "b": [], "a": [1]}', "a: there are two of this name"),
        ('{"a": [], "c": []}', "b: Field required"),
        ('{"c": [1 2], "a": [], "b": []}', "Expecting ',' or ']'"),
    ],
)
def test_the_fault_is_named(text: str, said: str) -> None:
    with pytest.raises(ValueError) as error:  # noqa: PT011
        read(text)
    assert said in str(error.value)


def test_numbers_without_end_are_infinite() -> None:
    many = "9" * 5000
    assert read(f'{{"c": {many}, "a": [{many}, -{many}], "b": [12345678901234567890]}}') == {
        "a": [inf, -inf],
        "b": [12345678901234567890],
    }


def test_what_is_nested_too_deeply_is_refused() -> None:
    with pytest.raises(RecursionError):
        read('{"a": ' + "[" * 200_000)


LARGE = """
import json, resource, sys
from pathlib import Path
from wbar_training.uploads.coco import MOST_BYTES, read_coco
polygon = [[n * 0.25 + 0.01 for n in range(100)]]
one = json.dumps({"id": 0, "image_id": 7, "category_id": 1, "bbox": [0, 0, 25, 25], "segmentation": polygon})[8:]
count = (MOST_BYTES - 1000) // (len(one) + 16)
with open(sys.argv[1], "w") as file:
    file.write('{"images": [{"id": 7, "file_name": "a.png"}], "categories": [{"id": 1, "name": "car"}], "annotations": [')
    for n in range(count):
        file.write(f'{"," if n else ""}{{"id": {n:8}{one}')
    file.write("]}")
data = Path(sys.argv[1]).read_bytes()
Path(sys.argv[1]).unlink()
assert 0.95 * MOST_BYTES < len(data) <= MOST_BYTES, len(data)
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
found = read_coco("train/annotations.json", data)
after = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
print(len(found.annotations) == count, (after - before) * 1024 / len(data))
"""


@pytest.mark.long
def test_a_file_of_a_gigabyte_takes_little_beside_its_numbers(tmp_path: Path) -> None:
    command = [sys.executable, "-P", "-c", LARGE, str(tmp_path / "annotations.json")]
    done = subprocess.run(command, capture_output=True, text=True, timeout=600, check=False)
    assert done.returncode == 0, done.stderr
    read_all, times = done.stdout.split()
    assert read_all == "True"
    # The text, and its numbers in eight bytes each: about twice the file. Python's lists of them would take five times it.
    assert 1 < float(times) < 3
