"""Files of the same tensors whose metadata name different networks are not combined."""

import base64
import json
import zlib
from pathlib import Path

import numpy as np
import pytest
from safetensors import safe_open
from safetensors.numpy import save_file

from wbar_averaging import TaskArithmetic, merge_checkpoints
from wbar_averaging.streamed_mean import Mismatch


def written(path: Path, **metadata: str) -> Path:
    save_file({"w": np.arange(6, dtype=np.float32)}, path, {f"wbar.{name}": text for name, text in metadata.items()})
    return path


def packed(program: str, level: int = 9) -> str:
    return base64.b64encode(zlib.compress(program.encode(), level)).decode()


def test_the_same_network_keeps_what_says_which_it_is(tmp_path: Path) -> None:
    text = json.dumps({"nodes": ["aten.linear.default"] * 100})
    one = written(tmp_path / "one", program=packed(text), config="{}")
    two = written(tmp_path / "two", program=packed(text, 1), config="{}")  # packed by another library
    assert one.read_bytes() != two.read_bytes()
    merge_checkpoints([one, two], tmp_path / "out.safetensors")
    with safe_open(tmp_path / "out.safetensors", framework="np") as file:
        assert file.metadata()["wbar.program"] == packed(text)


@pytest.mark.parametrize(
    ("said", "other", "words"),
    [
        (
            {"program": packed("a")},
            {"program": packed("b")},
            "wbar.program: the network's program has the sha256 ca97811",
        ),
        ({"program": packed("a")}, {"program": "no base64"}, "wbar.program"),
        ({"config": '{"heads": 2}'}, {"config": '{"heads": 4}'}, "wbar.config: the network's configuration"),
    ],
)
def test_different_networks_are_refused_by_name(
    said: dict[str, str], other: dict[str, str], words: str, tmp_path: Path
) -> None:
    one, two, three = (
        written(tmp_path / "one", **said),
        written(tmp_path / "two", **other),
        written(tmp_path / "three", **said),
    )
    for sources, base in (([one, two], None), ([one, three, two], None), ([two], one)):
        method = TaskArithmetic(0.5) if base else None
        with pytest.raises(Mismatch, match=words) as refused:
            merge_checkpoints(sources, tmp_path / "out.safetensors", method, base=base)
        assert "two: the same tensors compute something else there" in str(refused.value)
    assert not (tmp_path / "out.safetensors").exists()


def test_a_file_that_says_nothing_is_taken_and_the_result_says_nothing(tmp_path: Path) -> None:
    one, plain = written(tmp_path / "one", program=packed("a")), written(tmp_path / "plain")
    merge_checkpoints([one, plain], tmp_path / "out.safetensors")
    with safe_open(tmp_path / "out.safetensors", framework="np") as file:
        assert "wbar.program" not in file.metadata()
