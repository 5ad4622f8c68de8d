"""`wbar study`: a study from the command line, from the first word to the report."""

import csv
import json
from pathlib import Path

import pytest

from tests.client.test_cli import wbar
from tests.conftest import Service
from tests.material import write_archive, write_start
from wbar.cli import REFUSED, USAGE

SHORT = '{"method": {"type": "lawa", "window": 1, "epochs": 2, "shape": "constant"}}'


@pytest.mark.long
def test_a_study_from_the_command_line(service: Service, tmp_path: Path) -> None:
    checkpoint = wbar(service, "upload", str(write_start(tmp_path))).stdout.strip()
    dataset = wbar(service, "datasets", "add", str(write_archive(tmp_path))).stdout.strip()
    inputs = ["--checkpoint", checkpoint, "--dataset", dataset, "--job", SHORT]
    grid = ["--batch-sizes", "20,60", "--rates", "0.01", "--scaling", "none,sqrt", "--base-batch", "20"]
    others = ["--vary", "recipe.optimizer.weight_decay=[0]", "--seeds", "3", "--at-once", "1", "--name", "a study"]
    planned = wbar(service, "study", "create", *inputs, *grid, *others, "--flatness", "--surface", "3", "--dry-run")
    assert planned.returncode == 0, planned.stderr
    plan = json.loads(planned.stdout)
    assert (plan["object"], plan["jobs"]) == ("study_plan", 3)
    assert plan["children"][0]["job"]["surface"]["points"] == 3
    done = wbar(service, "study", "create", *inputs, *grid, *others, "--wait", "--json")
    assert done.returncode == 0, done.stderr
    report = json.loads(done.stdout)
    assert [job["settings"]["lr"] for job in report["jobs"]] == [0.01, 0.01, pytest.approx(0.01 * 3**0.5)]
    assert {job["seed"] for job in report["jobs"]} == {3}
    study = report["study"]
    shown = wbar(service, "study", "report", study)
    assert f"{study}: ended" in shown.stdout
    assert shown.stdout.count("succeeded") == 3
    for words, rows in (([], 3), (["--epochs"], 6), (["--updates"], 0), (["--surface"], 0)):
        written = wbar(service, "study", "report", study, "-o", str(tmp_path / "report.csv"), *words)
        assert written.returncode == 0, written.stderr
        assert len(list(csv.DictReader((tmp_path / "report.csv").read_text().splitlines()))) == rows
    both = wbar(service, "study", "report", study, "-o", str(tmp_path / "report.csv"), "--epochs", "--surface")
    assert both.returncode == USAGE
    wbar(service, "study", "report", study, "-o", str(tmp_path / "report.json"))
    assert json.loads((tmp_path / "report.json").read_text())["study"] == study
    assert json.loads(wbar(service, "study", "list", "--json", "--limit", "1").stdout)["data"][0]["name"] == "a study"
    assert json.loads(wbar(service, "study", "show", study).stdout)["counts"] == {"succeeded": 3}
    for action in ("cancel", "pause", "resume"):
        assert wbar(service, "study", action, study).returncode == REFUSED
    assert wbar(service, "study", "delete", study).returncode == 0
    assert wbar(service, "study", "watch", study).returncode == REFUSED
    refused = wbar(service, "study", "create", *inputs)
    assert (refused.returncode, "nothing is varied" in refused.stderr) == (REFUSED, True)
    assert wbar(service, "study", "create", *inputs, "--seeds", "x").returncode == USAGE
    assert wbar(service, "study", "create", *inputs, "--vary", "method.pull=0").returncode == USAGE
