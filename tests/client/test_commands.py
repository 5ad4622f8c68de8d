"""The command line for programs and for people who come back: JSON, files, logs, comparison, completion, Ctrl-C."""

import json
import os
import re
import shlex
import signal
import subprocess
import sys
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.client.test_cli import wbar
from tests.conftest import Service, wait_until
from tests.material import write_archive, write_start
from wbar.cli.job_file import read_object


@dataclass(frozen=True)
class Material:
    checkpoint: str
    dataset: str
    jobs: tuple[str, str]  # succeeded, of one and of two cycles


@pytest.fixture(scope="module")
def material(service: Service, tmp_path_factory: pytest.TempPathFactory) -> Material:
    folder = tmp_path_factory.mktemp("commands")
    with service.client() as client:
        checkpoint = client.checkpoints.create(write_start(folder)).id
        dataset = client.datasets.create(write_archive(folder)).id
        made = []
        for cycles in (1, 2):
            method = {"cycles": cycles, "high": {"lr": 0.02}, "low": {"lr": 0.002}}
            job = client.jobs.create(
                checkpoint=checkpoint, dataset=dataset, method=method, metadata={"cycles": str(cycles)}
            )
            assert job.id is not None
            made.append(job.id)
        for job_id in made:
            assert client.jobs.wait(job_id, timeout=120).status == "succeeded"
    return Material(checkpoint, dataset, (made[0], made[1]))


def printed(service: Service, *words: str) -> Any:
    """What a command prints with --json: one value, and nothing beside it."""
    done = wbar(service, *words, "--json")
    assert (done.returncode, done.stderr) == (0, "")
    return json.loads(done.stdout)


def test_the_weights_of_a_job_are_uploaded_by_its_id(service: Service, material: Material) -> None:
    made = printed(service, "upload", material.jobs[0], "--name", "go on")
    assert (made["name"], made["status"]) == ("go on", "ready")
    refused = wbar(service, "upload", material.jobs[0], "--architecture", "resnet20")
    assert (refused.returncode, "have a network already" in refused.stderr) == (2, True)
    assert "is no file" in wbar(service, "upload", "job").stderr


@pytest.mark.long
def test_json_of_every_command_about_jobs(service: Service, material: Material, tmp_path: Path) -> None:
    first, second = material.jobs
    # Other tests may have made jobs since.
    page = printed(service, "jobs", "--checkpoint", material.checkpoint, "--order", "asc", "--limit", "2")
    assert (page["object"], [job["id"] for job in page["data"]]) == ("list", [first, second])
    tagged = printed(
        service, "jobs", "--checkpoint", material.checkpoint, "--metadata", "cycles=2", "--status", "succeeded"
    )
    assert [job["id"] for job in tagged["data"]] == [second]
    assert printed(service, "show", first)["status"] == "succeeded"
    assert printed(service, "watch", first)["id"] == first
    types = {event["type"] for event in printed(service, "logs", first)}
    assert {"status", "snapshot", "metrics"} <= types
    assert "progress" not in types
    lines = wbar(service, "logs", first, "-f", "--progress", "--json").stdout.splitlines()
    assert "progress" in {json.loads(line)["type"] for line in lines}
    out = tmp_path / "out.safetensors"
    done = printed(service, "download", first, "-o", str(out))
    assert (done["path"], done["bytes"]) == (str(out), out.stat().st_size)
    with service.client() as client:
        result = client.jobs.get(first).result
    assert result is not None
    assert done["sha256"] == result.weights.sha256
    brief = ["--checkpoint", material.checkpoint, "--dataset", material.dataset, "--cycles", "1"]
    assert printed(service, "submit", *brief, "--dry-run")["id"] is None
    waited = printed(service, "submit", *brief, "--wait")
    assert (waited["status"], waited["method"]["cycles"]) == ("succeeded", 1)
    assert (
        printed(service, "clone", first, "--dry-run", "--changes", '{"method": {"cycles": 3}}')["method"]["cycles"] == 3
    )


@pytest.mark.long
def test_json_of_the_other_commands(service: Service, material: Material, tmp_path: Path) -> None:
    assert printed(service, "upload", str(write_start(tmp_path)))["status"] == "ready"
    assert printed(service, "datasets", "add", "builtin:digits", "--max-train-images", "96")["status"] == "ready"
    assert printed(service, "checkpoints", "--limit", "1")["has_more"] is True
    assert printed(service, "datasets", "list", "--limit", "1", "--order", "asc")["data"][0]["object"] == "dataset"
    key = printed(service, "keys", "create", "for a program", "--scope", "read")
    assert key["key"].startswith("wbar_")
    assert key["id"] in [one["id"] for one in printed(service, "keys", "list")["data"]]
    assert printed(service, "keys", "revoke", key["id"]) == {"id": key["id"], "object": "key", "deleted": True}
    assert len(printed(service, "schedule", "--cycles", "2")["phases"]) == 4


def test_json_of_an_object_and_of_a_list(service: Service, material: Material) -> None:
    assert printed(service, "show", material.jobs[0])["status"] == "succeeded"
    assert printed(service, "jobs", "--limit", "1")["has_more"] is True


def test_errors_are_problems_on_stderr(service: Service, material: Material) -> None:
    done = wbar(service, "show", "job_none", "--json")
    problem = json.loads(done.stderr)
    assert (done.returncode, done.stdout) == (3, "")
    assert (problem["code"], problem["status"], problem["type"]) == ("not_found", 404, "urn:wbar:problem:not_found")
    done = wbar(service, "submit", "--checkpoint", "ckpt_c", "--dataset", "ds_d", "--cycles", "0", "--json")
    assert json.loads(done.stderr)["errors"][0]["pointer"] == "/method/cycles"
    done = wbar(None, "jobs", "--json", WBAR_URL="http://127.0.0.1:9", WBAR_API_KEY="x")
    assert (done.returncode, json.loads(done.stderr)["code"]) == (4, "unreachable")


def test_compare_shows_what_differs_and_the_errors(service: Service, material: Material) -> None:
    made = printed(service, "compare", *material.jobs)
    assert {"option": "method.cycles", "values": [1, 2]} in made["options"]
    assert not [option for option in made["options"] if option["option"].startswith("recipe")]
    averaged = next(row for row in made["comparisons"] if row["name"] == "averaged")
    for job, score in zip(made["jobs"], averaged["scores"], strict=True):
        p, n = score["accuracy"], job["held_out"]
        assert score["accuracy_error"] == pytest.approx((p * (1 - p) / n) ** 0.5)
    text = wbar(service, "compare", *material.jobs).stdout
    for words in ("method.cycles", "averaged weights w̄, accuracy", " ± ", "one standard error"):
        assert words in text
    assert wbar(service, "compare", material.jobs[0]).returncode == 2


def test_logs_and_open(service: Service, material: Material, tmp_path: Path) -> None:
    job = material.jobs[1]
    lines = wbar(service, "logs", job).stdout.splitlines()
    assert lines[0].split()[1:] == ["status", "queued"]
    assert lines[-1].split()[1:] == ["status", "succeeded"]
    assert any("snapshot 2 at step" in line for line in lines)
    followed = wbar(service, "logs", job, "-f").stdout.splitlines()
    assert followed == lines
    browser = tmp_path / "browser"
    browser.write_text(f'#!/bin/sh\necho "$1" > {tmp_path}/opened\n')
    browser.chmod(0o755)
    done = wbar(service, "open", job, BROWSER=f"{browser} %s")
    assert done.returncode == 0
    assert re.fullmatch(rf"{service.url}/sign-in\?link=[\w-]+&next=/jobs/{job}\n", done.stdout)
    assert (tmp_path / "opened").read_text() == done.stdout
    assert "Open the dashboard" in httpx.get(done.stdout.strip()).text
    nowhere = {"PATH": str(tmp_path), "BROWSER": "", "DISPLAY": "", "WAYLAND_DISPLAY": ""}
    done = wbar(service, "open", **nowhere)
    assert (done.returncode, done.stdout.startswith(f"{service.url}/sign-in?link=")) == (0, True)
    assert "no browser here" in done.stderr
    assert wbar(service, "open", "job_none").returncode == 3


def test_a_whole_job_from_a_file_with_options_before_it(service: Service, material: Material, tmp_path: Path) -> None:
    file = tmp_path / "job.yaml"
    file.write_text(
        f"checkpoint: {material.checkpoint}\ndataset: {material.dataset}\nname: from a file\n"
        "method:\n  type: cyclic_swa\n  cycles: 4\n  high: {lr: 2e-2}\nrecipe:\n  mixup: 0.2\nseed: 7\nswag: 5\n"
    )
    job = printed(service, "submit", f"@{file}", "--dry-run")
    assert (job["name"], job["seed"], job["swag"], job["method"]["cycles"]) == ("from a file", 7, 5, 4)
    job = printed(
        service, "submit", f"@{file}", "--dry-run", "--cycles", "3", "--seed", "1", "--flatness", "--swag", "2"
    )
    assert (job["seed"], job["swag"], job["flatness"]) == (1, 2, True)
    assert (job["method"]["cycles"], job["method"]["high"]["lr"], job["recipe"]["mixup"]) == (3, 0.02, 0.2)
    job = printed(service, "submit", f"@{file}", "--dry-run", "--method", "ema", "--epochs", "2.5")
    assert (job["method"]["type"], job["method"]["epochs"]) == ("ema", 2.5)
    (tmp_path / "job.json").write_text(json.dumps({"checkpoint": material.checkpoint, "dataset": material.dataset}))
    assert printed(service, "submit", f"@{tmp_path / 'job.json'}", "--dry-run")["method"]["type"] == "cyclic_swa"
    file.write_text(f"checkpoint: {material.checkpoint}\n")
    done = wbar(service, "submit", f"@{file}")
    assert (done.returncode, "--dataset" in done.stderr) == (2, True)
    done = wbar(service, "submit", str(file))
    assert (done.returncode, f"@{file}" in done.stderr) == (2, True)
    file.write_text("a: [1\n")
    done = wbar(service, "submit", f"@{file}")
    assert (done.returncode, "neither JSON nor YAML" in done.stderr) == (2, True)


def test_options_leave_the_rest_of_what_was_given_as_it_is(
    service: Service, material: Material, tmp_path: Path
) -> None:
    inputs = ["--checkpoint", material.checkpoint, "--dataset", material.dataset]
    given = '{"optimizer": {"name": "sgd", "momentum": 0.5}, "distillation": {"teacher": "a larger one"}}'
    with service.client() as client:
        teacher = client.checkpoints.create(write_start(tmp_path), name="a larger one").id
    job = printed(service, "submit", *inputs, "--recipe", given, "--optimizer", "sgd", "--dry-run")
    assert job["recipe"]["optimizer"]["momentum"] == 0.5
    assert job["recipe"]["distillation"]["teacher"] == teacher
    job = printed(service, "clone", material.jobs[0], "--changes", '{"dry_run": true, "seed": 3}')
    assert (job["id"], job["seed"]) == (None, 3)
    file = tmp_path / "study.yaml"
    file.write_text("seeds: [1, 2]\njob:\n  method: {type: auto, epochs: 6}\n")
    plan = printed(
        service, "study", "create", f"@{file}", *inputs, "--job", '{"method": {"control": true}}', "--dry-run"
    )
    method = plan["children"][0]["job"]["method"]
    assert (plan["jobs"], method["type"], method["epochs"], method["control"]) == (2, "auto", 6, True)


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("clone", "job_1", "--changes", '{"job_id": "job_2"}'), "job_id is no field"),
        (("clone", "job_1", "--changes", '{"idempotency_key": "x"}'), "idempotency_key is no field"),
        (
            ("study", "create", "--job", '{"self": 1}', "--checkpoint", "ckpt_1", "--dataset", "ds_1"),
            "self is no field",
        ),
        (("merges", "create", "ckpt_1", "--weights", "ema:0.9,0.5"), "one decay is wanted"),
        (("merges", "create", "ckpt_1", "--weights", "1,x"), "numbers with commas between them"),
    ],
)
def test_what_no_request_has_is_wrong_usage(words: tuple[str, ...], said: str) -> None:
    done = wbar(None, *words)
    assert (done.returncode, "Traceback" in done.stderr) == (2, False)
    assert said in " ".join(done.stderr.replace("│", " ").split())


@pytest.mark.parametrize("job", ["", "[1]", "text"])
def test_a_study_of_no_job_is_wrong_usage(job: str, tmp_path: Path) -> None:
    (tmp_path / "study.yaml").write_text(f"seeds: [1]\njob: {job}\n")
    done = wbar(None, "study", "create", f"@{tmp_path / 'study.yaml'}")
    assert (done.returncode, "Traceback" in done.stderr) == (2, False)
    assert ("missing" if not job else "an object is wanted") in done.stderr


def test_a_soup_on_the_command_line(service: Service, material: Material, tmp_path: Path) -> None:
    with service.client() as client:
        other = client.checkpoints.create(write_start(tmp_path)).id
    words = ["submit", "--dataset", material.dataset, "--soup", material.checkpoint, "--soup", other, "--dry-run"]
    job = printed(service, *words, "--weight", "2", "--weight", "1")
    assert job["checkpoint"] == material.checkpoint
    assert (job["method"]["type"], job["method"]["checkpoints"]) == ("soup", [material.checkpoint, other])
    assert job["method"]["weights"] == [2, 1]
    assert printed(service, *words, "--average", "greedy")["method"]["average"] == "greedy"


def test_yaml_is_read_as_its_version_1_2_has_it(tmp_path: Path) -> None:
    file = tmp_path / "file"
    file.write_text("lr: 1e-3\nclasses: [no, yes]\nname: 12:30\nday: 2026-01-01\nn: 010\nnone: ~\nempty:\non: true\n")
    assert read_object(f"@{file}", "@FILE") == {
        "lr": 0.001, "classes": ["no", "yes"], "name": "12:30", "day": "2026-01-01", "n": 10, "none": None, "empty": None,
        "on": True,
    }  # fmt: skip


def complete(service: Service | None, line: str, **environment: str) -> list[str]:
    """What bash offers at the end of a line."""
    words = line.split(" ")
    asked = {"_WBAR_COMPLETE": "complete_bash", "COMP_WORDS": line, "COMP_CWORD": str(len(words) - 1)}
    return wbar(service, **(asked | environment)).stdout.split("\n")


def test_the_shell_completes_commands_ids_and_states(service: Service, material: Material) -> None:
    assert "compare" in complete(service, "wbar com")
    with service.client() as client:  # others have made jobs and checkpoints, too: the newest are offered
        jobs, checkpoint = client.jobs.list(limit=20).data, client.checkpoints.list(limit=1).data[0].id
    assert {job.id for job in jobs} <= set(complete(service, "wbar watch job_"))
    assert complete(service, "wbar jobs --status suc") == ["succeeded", ""]
    assert checkpoint in complete(service, f"wbar submit --checkpoint {checkpoint[:-1]}")
    assert complete(None, "wbar watch job_", WBAR_URL="http://127.0.0.1:9", WBAR_API_KEY="x") == ["", ""]
    # Typer asks the process above which shell it is; `true` keeps bash from becoming the command itself.
    command = shlex.join([sys.executable, "-P", "-m", "wbar.cli", "--show-completion"]) + "; true"
    shown = subprocess.run(["bash", "-c", command], capture_output=True, text=True, timeout=60)
    assert "_WBAR_COMPLETE=complete_bash" in shown.stdout + shown.stderr


@pytest.mark.parametrize(
    "words",
    [
        ("watch",),
        pytest.param(("watch", "--json"), marks=pytest.mark.long),
        pytest.param(("logs", "-f"), marks=pytest.mark.long),
    ],
)
def test_ctrl_c_leaves_the_job_running(service: Service, material: Material, words: tuple[str, ...]) -> None:
    with service.client() as client:
        method = {"type": "none", "epochs": 5000}
        job = client.jobs.create(checkpoint=material.checkpoint, dataset=material.dataset, method=method)
        assert job.id is not None
        try:
            wait_until(lambda: client.jobs.get(str(job.id)).status == "running", 60, "the job")
            process = subprocess.Popen(
                [sys.executable, "-P", "-m", "wbar.cli", words[0], job.id, *words[1:]],
                env=os.environ | {"WBAR_URL": service.url, "WBAR_API_KEY": service.key},
                stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
                # Tests that run in the background ignore the signal, and would hand that down.
                preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
            )  # fmt: skip
            try:
                wait_until(lambda: following(process.pid, service.port), 60, "its connection")
                process.send_signal(signal.SIGINT)
                out, said = process.communicate(timeout=60)
            finally:
                process.kill()
                process.communicate()
            assert process.returncode == 130, said
            assert client.jobs.get(job.id).status == "running"
            assert "Traceback" not in said
            if words == ("watch",):
                assert f"{job.id} goes on. Come back: wbar watch {job.id}. End it: wbar cancel {job.id}" in said
            if "--json" in words:
                assert json.loads(out)["id"] == job.id
        finally:
            client.jobs.cancel(job.id)


def following(pid: int, port: int) -> bool:
    """Whether a process has a connection to the service."""
    remote = f"0100007F:{port:04X}"
    table = [line.split() for line in Path("/proc/net/tcp").read_text().splitlines()[1:]]
    sockets = {f"socket:[{row[9]}]" for row in table if row[2] == remote and row[3] == "01"}
    for file in Path(f"/proc/{pid}/fd").iterdir():
        with suppress(FileNotFoundError):  # it was closed meanwhile
            if os.readlink(file) in sockets:
                return True
    return False
