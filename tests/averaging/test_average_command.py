"""`wbar average`: what it writes and prints, and errors that say what to do, with exit code 2."""

import subprocess
import sys
from pathlib import Path

import pytest
import torch
from click.testing import Result
from safetensors.torch import load_file
from typer.testing import CliRunner

from wbar_averaging import write_safetensors
from wbar_averaging.commands import app


@pytest.fixture
def files(tmp_path: Path) -> list[Path]:
    paths = [tmp_path / f"{name}.safetensors" for name in "ab"]
    for n, path in enumerate(paths):
        write_safetensors(path, {"w": torch.tensor([1.0, 2.0]) * (1 + 2 * n), "v": torch.zeros(3)}, {})
    return paths


def average(*words: object) -> Result:
    return CliRunner().invoke(app, ["average", *map(str, words)])


def test_the_mean_is_written_and_its_path_printed(files: list[Path], tmp_path: Path) -> None:
    out = tmp_path / "mean.safetensors"
    done = average(*files, "-o", out)
    assert (done.exit_code, done.stdout, done.stderr) == (0, f"{out}\n", "")
    assert load_file(out)["w"].tolist() == [2, 4]


def test_the_options_arrive(files: list[Path], tmp_path: Path) -> None:
    out = tmp_path / "mean.safetensors"
    assert average(*files, "-o", out, "--weights", "3,1", "--dtype", "bf16", "--accumulate", "float32").exit_code == 0
    assert load_file(out)["w"].tolist() == [1.5, 3]
    assert load_file(out)["w"].dtype == torch.bfloat16
    done = average(*files, "-o", out, "--max-shard-size", "12B")
    assert done.stdout == f"{tmp_path / 'mean.safetensors.index.json'}\n"
    assert (tmp_path / "mean-00002-of-00002.safetensors").exists()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--weights", "1,x"], "--weights 1,x: numbers with commas"),
        (["--weights", "1"], "1 weights for 2"),
        (["--dtype", "int8"], "'int8' is no dtype"),
        (["--accumulate", "float16"], "not float16"),
        (["--max-shard-size", "5 parsecs"], "5 parsecs: a size was expected"),
        (["--max-shard-size", "-5"], "-5: a size was expected"),
        (["--max-shard-size", "0"], "at least 1"),
        (["-o", "/nowhere/at/all.safetensors"], "no such folder"),
        (["none.safetensors"], "there is no such file"),
    ],
)
def test_what_makes_no_sense_ends_with_2_and_a_sentence(files: list[Path], options: list[str], message: str) -> None:
    done = average(*files, "-o", files[0].with_name("mean.safetensors"), *options)
    assert done.exit_code == 2
    assert done.stderr.startswith("error: ")
    assert message in done.stderr
    assert done.stdout == ""
    assert sorted(files[0].parent.iterdir()) == files


def test_a_damaged_file_ends_with_2_and_its_name(files: list[Path]) -> None:
    files[1].write_bytes(files[1].read_bytes()[:-1])
    done = average(*files, "-o", files[0].with_name("mean.safetensors"))
    assert done.exit_code == 2
    assert str(files[1]) in done.stderr
    assert "truncated?" in done.stderr


def test_neither_torch_nor_rich_is_loaded_for_safetensors_files(files: list[Path], tmp_path: Path) -> None:
    code = """
import sys
from wbar_averaging.commands import app
app(["average", *sys.argv[1:]], standalone_mode=False)
print(sorted({"torch", "safetensors", "rich.progress", "wbar", "training"} & set(sys.modules)))
"""
    words = [*map(str, files), "-o", str(tmp_path / "mean.safetensors")]
    done = subprocess.run(
        [sys.executable, "-P", "-c", code, *words], check=True, capture_output=True, text=True, timeout=60
    )
    assert done.stdout.splitlines()[-1] == "[]"
    assert done.stderr == ""
