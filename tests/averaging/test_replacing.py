"""A mean that is written where another lay replaces it as a whole, whatever stops it on the way."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from wbar_averaging import write_safetensors
from wbar_averaging.soup import average_checkpoints, greedy_soup

NAMES = "abcd"  # a float32 tensor of one number each
SIZES = {"single": None, "two shards": 8, "four shards": 4}


def source(folder: Path, value: float) -> Path:
    folder.mkdir(exist_ok=True)
    path = folder / f"{value:g}.safetensors"
    write_safetensors(path, {name: torch.tensor([float(value)]) for name in NAMES}, {})
    return path


def files(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir() if path.is_file()}


def as_loaded(folder: Path) -> set[float] | None:
    """What `from_pretrained` would load: the single file where there is one, else the shards of the index; None: neither."""
    single, index = folder / "model.safetensors", folder / "model.safetensors.index.json"
    if single.exists():
        return {tensor.item() for tensor in load_file(single).values()}
    if not index.exists():
        return None
    homes: dict[str, Any] = json.loads(index.read_text())["weight_map"]
    return {load_file(folder / file)[name].item() for name, file in homes.items()}


@pytest.mark.parametrize("new", SIZES)
@pytest.mark.parametrize("old", SIZES)
def test_only_the_new_files_are_left(tmp_path: Path, old: str, new: str) -> None:
    one, two = source(tmp_path / "in", 1), source(tmp_path / "in", 2)
    here, fresh = tmp_path / "here", tmp_path / "fresh"
    here.mkdir()
    fresh.mkdir()
    average_checkpoints([one], None, here / "model.safetensors", max_shard_bytes=SIZES[old])
    source(here, 5)  # whatever else lies there stays
    (here / "model-00001-of-2.safetensors").write_bytes(b"no shard's name")
    others = {"5.safetensors", "model-00001-of-2.safetensors"}
    written = average_checkpoints([two], None, here / "model.safetensors", max_shard_bytes=SIZES[new])
    average_checkpoints([two], None, fresh / "model.safetensors", max_shard_bytes=SIZES[new])
    assert {name: content for name, content in files(here).items() if name not in others} == files(fresh)
    assert others < files(here).keys()
    assert as_loaded(here) == {2}
    assert [path.name for path in here.iterdir() if path.is_dir()] == []
    assert written == here / ("model.safetensors" if new == "single" else "model.safetensors.index.json")


def test_a_greedy_soup_replaces_shards_too(tmp_path: Path) -> None:
    one = source(tmp_path / "in", 1)
    out = tmp_path / "model.safetensors"
    average_checkpoints([one], None, out, max_shard_bytes=4)
    greedy_soup([one], lambda _path: 1.0, out)
    assert sorted(files(tmp_path)) == ["model.safetensors"]


def test_the_inputs_may_be_the_shards_that_are_replaced(tmp_path: Path) -> None:
    out = tmp_path / "model.safetensors"
    index = average_checkpoints([source(tmp_path / "in", 1)], None, out, max_shard_bytes=8)
    assert average_checkpoints([index, source(tmp_path / "in", 2)], None, out, max_shard_bytes=4) == index
    assert as_loaded(tmp_path) == {1.5}
    assert len(files(tmp_path)) == 5


@pytest.mark.parametrize("new", ["two shards", "four shards"])
@pytest.mark.parametrize("old", SIZES)
def test_a_rename_that_fails_on_the_way_leaves_all_as_it_was(
    tmp_path: Path, old: str, new: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each rename fails once; what comes after the one that decides only leaves old files, and says so."""
    one, two = source(tmp_path / "in", 1), source(tmp_path / "in", 2)
    outcomes = []
    for failing in range(1, 20):
        here = tmp_path / str(failing)
        here.mkdir()
        average_checkpoints([one], None, here / "model.safetensors", max_shard_bytes=SIZES[old])
        before, calls = files(here), 0

        def counted(rename: Any, failing: int = failing) -> Any:
            def call(old_name: Any, new_name: Any) -> None:
                nonlocal calls
                calls += 1
                if calls == failing:
                    raise PermissionError(13, "not yours", str(old_name))
                rename(old_name, new_name)

            return call

        with monkeypatch.context() as patch:
            patch.setattr(os, "rename", counted(os.rename))
            patch.setattr(os, "replace", counted(os.replace))
            try:
                average_checkpoints([two], None, here / "model.safetensors", max_shard_bytes=SIZES[new])
            except OSError as error:
                if "belongs to the checkpoint that was replaced" in str(error):
                    outcomes.append("left over")
                    assert as_loaded(here) == {2}
                else:
                    outcomes.append("undone")
                    assert files(here) == before
                assert not [path for path in here.iterdir() if path.is_dir()]
            else:
                assert as_loaded(here) == {2}
                break
    else:
        pytest.fail("more renames than there are files")
    assert "undone" in outcomes
    assert outcomes == sorted(outcomes, reverse=True)  # first what can be undone, then what is left over


KILLED = """
import os, sys
from wbar_averaging.soup import average_checkpoints
source, out, size, fatal = sys.argv[1], sys.argv[2], int(sys.argv[3]) or None, int(sys.argv[4])
calls = 0
def counted(rename):
    def call(*names):
        global calls
        calls += 1
        if calls == fatal:
            os._exit(9)
        rename(*names)
    return call
os.rename, os.replace = counted(os.rename), counted(os.replace)
average_checkpoints([source], None, out, max_shard_bytes=size)
print(calls)
"""


@pytest.mark.parametrize(
    ("old", "new"),
    [("single", "two shards"), ("two shards", "single"), ("two shards", "two shards"), ("two shards", "four shards")],
)
def test_a_killed_process_leaves_the_old_checkpoint_the_new_one_or_none(tmp_path: Path, old: str, new: str) -> None:
    one, two = source(tmp_path / "in", 1), source(tmp_path / "in", 2)
    seen: list[set[float] | None] = []
    for fatal in range(1, 20):
        here = tmp_path / str(fatal)
        here.mkdir()
        out = here / "model.safetensors"
        average_checkpoints([one], None, out, max_shard_bytes=SIZES[old])
        words = [sys.executable, "-P", "-c", KILLED, str(two), str(out), str(SIZES[new] or 0), str(fatal)]
        code = subprocess.run(words, stdout=subprocess.DEVNULL, timeout=60).returncode
        seen.append(as_loaded(here))
        average_checkpoints([two], None, out, max_shard_bytes=SIZES[new])  # the next run puts all in order
        assert as_loaded(here) == {2}
        if code == 0:
            break
        assert code == 9
    assert seen[0] == {1}
    assert seen[-1] == {2}
    assert all(state in ({1}, {2}, None) for state in seen)
    # Only where shards of the same names are replaced is there a moment without any.
    assert (None in seen) == (old == new)
