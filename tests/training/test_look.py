"""`wbar doctor FILE`: what an upload would be found to be, said here and offline, with the three nearest networks."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from wbar.spec import Network
from wbar_averaging import write_safetensors
from wbar_training.networks.architectures import initialized
from wbar_training.uploads import checkpoint_files, look


def test_a_known_network_is_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_safetensors(tmp_path / "a.safetensors", initialized(Network("resnet20", 7)).state_dict(), {})
    assert look.main([str(tmp_path / "a.safetensors")]) == 0
    assert "network: resnet20, 7 classes, 3 channels" in capsys.readouterr().out
    assert look.main([str(tmp_path / "a.safetensors"), "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert (found["verdict"], found["network"]["name"], found["format"]) == ("ok", "resnet20", "safetensors")


def test_an_unknown_one_is_told_the_three_nearest(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    tensors = initialized(Network("resnet20", 7)).state_dict()
    tensors["layer1.0.extra.weight"] = torch.zeros(3)
    write_safetensors(tmp_path / "a.safetensors", tensors, {})
    assert look.main([str(tmp_path / "a.safetensors"), "--json"]) == 1
    found = json.loads(capsys.readouterr().out)
    assert (found["verdict"], found["code"]) == ("fault", "unknown_architecture")
    nearest = found["details"]["nearest"]
    assert len(nearest) == 3
    assert (nearest[0]["name"], nearest[0]["unexpected"]) == ("resnet20", ["layer1.0.extra.weight"])


class Evil:
    """It makes a file where it is unpickled."""

    def __init__(self, canary: Path) -> None:
        self.canary = canary

    def __reduce__(self) -> object:
        return os.system, (f"touch {self.canary}",)


def test_faults_are_sentences_and_nothing_is_run_or_left(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    torch.save({"w": Evil(tmp_path / "canary")}, tmp_path / "evil.pth")
    (tmp_path / "text.safetensors").write_text("hello")
    for name, code in (("evil.pth", "unsafe_pickle"), ("text.safetensors", "corrupt_file"), ("none.pth", "unreadable")):
        assert look.main([str(tmp_path / name)]) == 1
        said = capsys.readouterr().out
        assert said.startswith(f"fault    {code}: ")
        assert said.count("\n") == 1
    assert sorted(path.name for path in tmp_path.iterdir()) == ["evil.pth", "text.safetensors"]


def test_no_copy_is_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> None:
        raise AssertionError("a second copy of the weights")

    monkeypatch.setattr(checkpoint_files, "write_safetensors", refuse)
    torch.save(initialized(Network("resnet20", 7)).state_dict(), tmp_path / "a.pth")
    assert look.main([str(tmp_path / "a.pth")]) == 0


def test_the_command_of_a_user(tmp_path: Path) -> None:
    write_safetensors(tmp_path / "a.safetensors", initialized(Network("resnet20", 7)).state_dict(), {})
    command = [
        sys.executable,
        "-P",
        "-c",
        "from wbar.cli import main; main()",
        "doctor",
        str(tmp_path / "a.safetensors"),
        "--json",
    ]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    assert (done.returncode, json.loads(done.stdout)["network"]["name"]) == (0, "resnet20")
