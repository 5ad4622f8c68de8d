"""`python -m wbar_training` runs every method from flags or a JSON file, says what is wrong in a line, and goes on."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from wbar.spec import Network
from wbar_averaging import write_safetensors
from wbar_training.__main__ import main
from wbar_training.networks.architectures import initialized

FEW = ["--set", "recipe.batch_size=512", "--threads", "1"]


@pytest.fixture(scope="module")
def starts(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """Two ResNet-20 for grey images, one of them saved as a training script would."""
    folder = tmp_path_factory.mktemp("starts")
    network = Network("resnet20", 10, channels=1)
    torch.manual_seed(0)
    write_safetensors(folder / "a.safetensors", initialized(network).state_dict(), {})
    torch.save({"model": {f"module.{k}": v for k, v in initialized(network).state_dict().items()}}, folder / "b.pth")
    return folder / "a.safetensors", folder / "b.pth"


def wbar_training(*arguments: object, cwd: Path) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-P", "-m", "wbar_training", *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, timeout=120, cwd=cwd)


@pytest.mark.long
def test_a_method_from_flags(starts: tuple[Path, Path], tmp_path: Path) -> None:
    method = ["--set", "method.type=ema", "--set", "method.epochs=2"]
    done = wbar_training(starts[0], "builtin:digits", *method, *FEW, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    printed = json.loads(done.stdout)
    assert (tmp_path / printed["weights"]).exists()
    assert printed["result"]["metrics"]["averaged"]["loss"] == printed["result"]["curve"][-1]["loss"]
    assert (tmp_path / "wbar-run" / "metrics.jsonl").read_text().count("\n") == 6


@pytest.mark.long
def test_a_job_from_json_with_a_field_over_it(starts: tuple[Path, Path], tmp_path: Path) -> None:
    job = {"method": {"type": "soup", "checkpoints": ["ckpt_start", "ckpt_b"], "weights": [1, 3]}, "seed": 4}
    (tmp_path / "job.json").write_text(json.dumps(job))
    out = ["-o", tmp_path / "out", "--job", "job.json", "--with", f"b={starts[1]}", "--set", "method.average=greedy"]
    refused = wbar_training(starts[0], "builtin:digits", *out, cwd=tmp_path)
    assert refused.returncode == 2
    assert "weights go with average uniform" in refused.stderr
    done = wbar_training(starts[0], "builtin:digits", *out[:-2], cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert len(json.loads(done.stdout)["result"]["curve"]) == 2


@pytest.mark.parametrize(
    ("arguments", "status", "said"),
    [
        (["--set", "method.cycles=many"], 2, "method.cyclic_swa.cycles"),
        (["--set", "recipe.colour=1"], 2, "recipe.colour"),
        (["--set", "nonsense"], 2, "an equals sign and a value are expected"),
        (["--set", "method=5", "--set", "method.type=ema"], 2, "method is 5 already"),
        (["--threads", "-1"], 2, "--threads"),
        (["--device", "quantum"], 2, "--device"),
        (["--with", "x"], 1, "an equals sign and a file are expected"),
        (
            ["--set", "method.type=soup", "--set", 'method.checkpoints=["ckpt_a", "ckpt_b"]'],
            1,
            "no checkpoint 'ckpt_a'",
        ),
        (["-o", "/dev/null/x"], 1, "/dev/null/x"),
        (["--architecture", "resnet32"], 1, "architecture_mismatch"),
        (["--set", "recipe.normalize.mean=[0.5, 0.5, 0.5]", "--set", "recipe.normalize.std=[1, 1, 1]"], 1, "channels"),
    ],
)
def test_what_is_wrong_is_said_in_a_line(
    starts: tuple[Path, Path], tmp_path: Path, arguments: list[str], status: int, said: str,
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    """In this process: another one takes seconds to import torch."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("sys.argv", ["wbar_training", str(starts[0]), "builtin:digits", *arguments])
    try:
        returned = main()
    except SystemExit as ended:  # of the parser
        returned = int(str(ended.code))
    assert returned == status
    assert said in " ".join(capsys.readouterr().err.split())
