"""`wbar merges`: a merge of the service from the command line, from the first word to the file."""

import json
from pathlib import Path

import pytest
from safetensors.numpy import load_file

from tests.client.test_cli import wbar
from tests.conftest import Service
from tests.service.test_merges import foreign
from wbar.cli import FAILED, REFUSED, USAGE
from wbar_averaging import TaskArithmetic, WeightedMean, merge_checkpoints


@pytest.mark.long
def test_a_merge_from_the_command_line(service: Service, tmp_path: Path) -> None:
    files = [foreign(tmp_path / f"{n}.safetensors", n) for n in range(3)]
    base, one, two = (wbar(service, "upload", str(path), "--purpose", "merge").stdout.strip() for path in files)
    out = tmp_path / "out.safetensors"
    words = ["--base", base, "--method", "task_arithmetic", "--scale", "0.5,0.25", "--name", "a line", "--json"]
    done = wbar(service, "merges", "create", one, two, "-o", str(out), *words)
    assert done.returncode == 0, done.stderr
    merge = json.loads(done.stdout)
    assert (merge["status"], merge["method"]["scale"], merge["name"]) == ("succeeded", [0.5, 0.25], "a line")
    expected = merge_checkpoints(files[1:], tmp_path / "x.safetensors", TaskArithmetic([0.5, 0.25]), base=files[0])
    assert load_file(out)["encoder.weight"].tobytes() == load_file(expected.path)["encoder.weight"].tobytes()
    for weights, method in (
        ("1-sqrt", WeightedMean("1-sqrt")),
        ("ema:0.5", WeightedMean("ema:0.5")),
        ("1,3", WeightedMean([1, 3])),
    ):
        made = wbar(service, "merges", "create", one, two, "--weights", weights, "--wait")
        assert made.returncode == 0, made.stderr
        assert wbar(service, "merges", "download", made.stdout.strip(), "-o", str(out)).returncode == 0
        merge_checkpoints(files[1:], expected.path, method)
        assert load_file(out)["encoder.weight"].tobytes() == load_file(expected.path)["encoder.weight"].tobytes()
    listed = wbar(service, "merges", "list", "--limit", "1", "--json")
    assert [item["id"] for item in json.loads(listed.stdout)["data"]] == [made.stdout.strip()]
    assert wbar(service, "merges", "show", merge["id"]).stdout == "succeeded\n"
    assert wbar(service, "merges", "cancel", merge["id"]).returncode == REFUSED
    assert wbar(service, "merges", "delete", merge["id"]).returncode == 0
    assert wbar(service, "merges", "show", merge["id"]).returncode == REFUSED
    other = wbar(
        service,
        "upload",
        str(foreign(tmp_path / "y.safetensors", 0, extra=load_file(out)["encoder.bias"])),
        "--purpose",
        "merge",
    )
    failed = wbar(service, "merges", "create", one, other.stdout.strip(), "--wait")
    assert failed.returncode == FAILED
    assert "extra: missing in" in failed.stderr
    assert wbar(service, "merges", "create", one, "--weights", "x").returncode == USAGE
    assert "wbar merges create" in wbar(service, "merge", one, two).stderr
