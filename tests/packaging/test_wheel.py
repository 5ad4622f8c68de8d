"""What the wheel puts where, and every command of it in a folder whose modules have the names that Python looks for."""

import json
import shutil
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from PIL import Image

from tests.conftest import Broker, wait_until
from tests.material import start_state, write_start
from tests.packaging.environments import ROOT, Decoys, Environment, Shell
from wbar.cli import FAILED, REFUSED
from wbar_averaging import write_safetensors
from wbar_store.settings import StoreSettings
from wbar_store.store import Store

PACKAGES = {"wbar", "wbar_averaging", "wbar_training", "wbar_store", "wbar_worker", "wbar_service"}
# Every command, by the test that runs it.
OFFLINE = {"average", "merge", "verify", "schedule", "migrate", "first-key", "gc"}
PARTS = {"migrate", "doctor", "first-key", "serve", "worker", "sweep", "datasets add"}
MERGES = ("create", "list", "show", "cancel", "delete", "download")
STUDY = ("create", "list", "show", "watch", "report", "cancel", "pause", "resume", "delete")
WEBHOOKS = ("create", "list", "delete", "ping", "enable", "rotate", "deliveries", "replay")
CLIENT = {
    "up", "upload", "checkpoints list", "checkpoints delete", "datasets add", "datasets list", "datasets delete", "delete",
    "submit", "jobs", "show", "watch", "cancel", "pause", "card", "signature", "predict",
    "finish", "clone", "resume", "download", "keys create", "keys list", "keys revoke", "backup", "restore", "logs",
    "open", "compare", "demo", *(f"webhooks {one}" for one in WEBHOOKS),
    *(f"merges {one}" for one in MERGES), *(f"study {one}" for one in STUDY),
    "export tensorboard", "export mlflow", "export csv", "export parquet",
}  # fmt: skip


@pytest.fixture(scope="module")
def environment(tmp_path_factory: pytest.TempPathFactory) -> Environment:
    return Environment(tmp_path_factory.mktemp("wheel"))


@pytest.fixture
def decoys(tmp_path: Path) -> Decoys:
    return Decoys(tmp_path)


@pytest.fixture
def shell(environment: Environment, decoys: Decoys, tmp_path: Path) -> Iterator[Shell]:
    """Typing in the folder full of decoys; at the end, none of them may have been imported."""
    variables = environment.variables(
        tmp_path,
        WBAR_CONFIG=str(tmp_path / "config.toml"),
        WBAR_DATABASE_URL=f"sqlite:///{tmp_path / 'wbar.db'}",
        WBAR_BLOBS_URL=f"file://{tmp_path / 'blobs'}",
        WBAR_SCRATCH=str(tmp_path / "scratch"),
        WBAR_THREADS="1",
        WBAR_LOADERS="1",
        WBAR_DEVICE="cpu",
    )
    yield Shell(environment, decoys.folder, variables)
    assert decoys.imported() == []


# What is in it.


def test_only_packages_of_our_own_names_stand_at_the_top(environment: Environment) -> None:
    metadata = {name for name in environment.installed if name.endswith(".dist-info")}
    assert environment.installed - metadata == PACKAGES
    assert len(metadata) == 1
    assert {name.split("/")[0] for name in environment.files} == PACKAGES | metadata


def test_everything_that_is_read_beside_the_modules_is_in_the_wheel(environment: Environment) -> None:
    # Every file of the packages, so that a new kind of data file cannot be forgotten.
    folders = [ROOT / "wbar", *ROOT.glob("*/wbar_*")]
    paths = [path for folder in folders for path in folder.rglob("*") if path.is_file()]
    paths = [path for path in paths if "__pycache__" not in path.parts]
    expected = {
        path.relative_to(folder.parent).as_posix() for folder in folders for path in paths if folder in path.parents
    }
    found = {name for name in environment.files if name.split("/")[0] in PACKAGES}
    assert found == expected
    assert {f"{package}/py.typed" for package in PACKAGES} <= found
    assert "wbar_training/networks/signatures.json" in found
    assert {"wbar_store/migrations/env.py", "wbar_store/migrations/script.py.mako"} <= found
    assert any(name.startswith("wbar_store/migrations/versions/0001") for name in found)


def test_the_packages_are_the_installed_ones(environment: Environment, tmp_path: Path) -> None:
    code = (
        f"import {', '.join(sorted(PACKAGES))}\nprint(*({', '.join(f'{name}.__file__' for name in sorted(PACKAGES))}))"
    )
    done = subprocess.run(
        [environment.python, "-P", "-c", code], cwd=tmp_path, env=environment.variables(tmp_path),
        capture_output=True, text=True, check=True, timeout=60,
    )  # fmt: skip
    assert done.stdout.split() == [str(environment.site / name / "__init__.py") for name in sorted(PACKAGES)]


@pytest.mark.parametrize("module", ["wbar_training", "wbar_averaging.commands"])
def test_a_package_runs_as_a_module(module: str, environment: Environment, tmp_path: Path) -> None:
    done = subprocess.run(
        [environment.python, "-m", module, "--help"], cwd=tmp_path, env=environment.variables(tmp_path),
        capture_output=True, text=True, timeout=60,
    )  # fmt: skip
    assert (done.returncode, done.stderr) == (0, "")
    assert "usage" in done.stdout.lower()


@pytest.mark.long
def test_training_as_a_module_leaves_the_current_folder_once_it_has_begun(
    environment: Environment, tmp_path: Path
) -> None:
    # What is imported before its first line cannot be helped; scikit-learn is imported later, where its digits are needed.
    (tmp_path / "sklearn.py").write_text("raise ImportError('a decoy in the current folder was imported')")
    seven = {
        name: tensor[:7] if len(tensor.shape) and len(tensor) == 10 else tensor
        for name, tensor in start_state().items()
    }
    write_safetensors(tmp_path / "seven.safetensors", seven, {})
    done = subprocess.run(
        [environment.python, "-m", "wbar_training", "seven.safetensors", "builtin:digits"],
        cwd=tmp_path, env=environment.variables(tmp_path), capture_output=True, text=True, timeout=120,
    )  # fmt: skip
    # The digits were read, and seen to have more classes than the network: it ends before it trains.
    assert (done.returncode, done.stdout) == (1, "")
    assert "classes_mismatch: the dataset has 10 classes" in " ".join(done.stderr.split())


def test_the_hollow_tree_that_the_images_install_first_builds(tmp_path: Path) -> None:
    for name in ("pyproject.toml", "README.md", "LICENSE", "wbar/__init__.py"):  # what the Dockerfile copies
        (tmp_path / "src" / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(ROOT / name, tmp_path / "src" / name)
    done = subprocess.run(
        [sys.executable, "-P", "-m", "pip", "wheel", "--no-deps", "--no-build-isolation", "--disable-pip-version-check",
         "--wheel-dir", str(tmp_path), str(tmp_path / "src")], capture_output=True, text=True, timeout=60,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert list(tmp_path.glob("wbar-*.whl"))


# Every command, from the folder full of decoys.


def test_every_command_is_run_by_a_test_below(shell: Shell) -> None:
    assert shell.commands() == OFFLINE | PARTS | CLIENT


def test_commands_that_need_no_service(shell: Shell, tmp_path: Path) -> None:
    for name, value in (("a", 1.0), ("b", 3.0)):
        write_safetensors(tmp_path / f"{name}.safetensors", {"w": torch.full((2,), value)}, {})
    mean = tmp_path / "mean.safetensors"
    words = [str(tmp_path / "a.safetensors"), str(tmp_path / "b.safetensors")]
    assert shell.wbar("average", *words, "-o", str(mean)) == f"{mean}\n"
    line = ["merge", words[1], "--base", words[0], "--method", "task_arithmetic", "--scale", "0.5", "-o", str(mean)]
    assert shell.wbar(*line) == f"{mean}\n"
    assert "high" in shell.wbar("schedule", "--plot", str(tmp_path / "plot.html"))
    assert "up to date" in shell.wbar("migrate")
    assert shell.wbar("first-key", "a laptop").startswith("wbar_")
    assert "0 blobs" in shell.wbar("gc", "--dry-run")
    again = (
        ["average", *words, "-o", str(mean)],
        line,
        ["schedule"],
        ["migrate"],
        ["first-key", "b"],
        ["gc", "--dry-run"],
    )
    for command in again:
        json.loads(shell.wbar(*command, "--json"))
    absent = ["--signature", str(tmp_path / "no.json"), "--public-key", str(mean)]
    assert "not_verified: there is no" in shell.wbar("verify", str(mean), *absent, code=FAILED)
    assert shell.typed == OFFLINE


@pytest.fixture
def broker() -> Iterator[Broker]:
    own = Broker()
    own.start()
    yield own
    own.kill()


def ended(process: "subprocess.Popen[bytes]") -> bool:
    return process.poll() is not None


@pytest.mark.long
def test_the_parts_by_themselves(shell: Shell, broker: Broker, tmp_path: Path) -> None:
    shell.wbar("migrate")
    listening = socket.create_server(("127.0.0.1", 0))
    port, fd = listening.getsockname()[1], listening.fileno()
    shell.variables |= {"WBAR_BROKER_URL": broker.url, "WBAR_FD": str(fd), "WBAR_URL": f"http://127.0.0.1:{port}"}
    shell.variables["WBAR_API_KEY"] = shell.wbar("first-key", "tests").strip()
    log = tmp_path / "log"
    parts = [
        shell.start("serve", log=log, fds=(fd,)),
        shell.start("worker", log=log),
        shell.start("worker", "--queue", "ingest", log=log),
        shell.start("sweep", log=log),
    ]
    store = Store.open(StoreSettings(database_url=shell.variables["WBAR_DATABASE_URL"], broker_url=broker.url))
    try:
        wait_until(
            lambda: {worker.queue for worker in store.workers.live()} == {"train", "ingest"} or any(map(ended, parts)),
            60, "the workers",
        )  # fmt: skip
        assert not any(map(ended, parts)), log.read_text()
        # Validated by a process of the ingest worker's, which the sweeper or the API notified.
        assert shell.wbar("datasets", "add", "builtin:digits").startswith("ds_")
        assert "train workers: train-" in shell.wbar("doctor")
        assert not any(map(ended, parts)), log.read_text()
    finally:
        for part in parts:
            part.send_signal(signal.SIGTERM)
        codes = [part.wait(60) for part in parts]
        store.close()
        listening.close()
    assert codes == [-signal.SIGTERM, 0, 0, 0], log.read_text()  # uvicorn passes the signal on to itself
    assert shell.typed == PARTS


@pytest.fixture
def up(shell: Shell, tmp_path: Path) -> Iterator[Path]:
    """`wbar up`, ready; its output."""
    log = tmp_path / "up.log"
    process = shell.start("up", "--port", "0", "--data", str(tmp_path / "data"), log=log)
    try:
        wait_until(lambda: "ready" in log.read_text() or process.poll() is not None, 60, "readiness")
        assert process.poll() is None, log.read_text()
        yield log
    finally:
        process.send_signal(signal.SIGTERM)
        code = process.wait(60)
    assert code == 0
    wait_until(lambda: not shell.environment.running(), 30, "the end of every process")


@pytest.mark.long
def test_jobs_run_to_their_end_under_wbar_up(shell: Shell, up: Path, tmp_path: Path) -> None:
    dataset = shell.wbar("datasets", "add", "builtin:digits", "--max-train-images", "96").strip()
    checkpoint = shell.wbar("upload", str(write_start(tmp_path))).strip()
    brief = ["--checkpoint", checkpoint, "--dataset", dataset, "--cycles", "1", "--batch-size", "48"]
    # rand_augment is done in DataLoader workers: processes that the training process starts from a forkserver of its own.
    one = shell.wbar("submit", *brief, "--augment", "rand_augment").strip()
    # Two devices: torch.distributed.run starts a process for each, and each of them its own DataLoader workers.
    two = shell.wbar("submit", *brief, "--augment", "rand_augment", "--recipe", '{"devices": 2}').strip()
    three = shell.wbar("submit", *brief).strip()
    assert shell.wbar("cancel", three) == "cancelled\n"
    log = tmp_path / "data" / "wbar.log"
    for job in (one, two):
        watched = shell.wbar("watch", job)
        assert '"status": "succeeded"' in shell.wbar("show", job), watched + log.read_text()
    assert "invalid_transition" in shell.wbar("pause", one, code=REFUSED)
    assert "invalid_transition" in shell.wbar("finish", one, code=REFUSED)
    assert '"cycles": 3' in shell.wbar("clone", one, "--changes", '{"method": {"cycles": 3}}', "--dry-run")
    assert "invalid_transition" in shell.wbar("resume", one, code=REFUSED)
    assert "snapshot 1 at step" in shell.wbar("logs", one)
    assert "devices" in shell.wbar("compare", one, two)
    assert shell.wbar("open", one).endswith(f"&next=/jobs/{one}\n")
    hook = json.loads(shell.wbar("webhooks", "create", "https://hooks.example/", "--json"))["id"]
    assert hook in shell.wbar("webhooks", "list")
    delivery = shell.wbar("webhooks", "ping", hook).strip()
    assert shell.wbar("webhooks", "rotate", hook).startswith("whsec_")
    assert shell.wbar("webhooks", "enable", hook) == "enabled\n"
    assert delivery in shell.wbar("webhooks", "deliveries", hook)
    assert shell.wbar("webhooks", "replay", hook, delivery) == "pending\n"
    assert shell.wbar("webhooks", "delete", hook) == f"{hook}\n"
    assert "Next: wbar up" in shell.wbar("demo", "--images", "200", "--folder", str(tmp_path / "demo"))
    merge = shell.wbar("merges", "create", one, "--last", "1", "-o", str(tmp_path / "merged.safetensors")).strip()
    assert shell.wbar("merges", "show", merge) == "succeeded\n"
    assert merge in shell.wbar("merges", "list")
    assert "invalid_transition" in shell.wbar("merges", "cancel", merge, code=REFUSED)
    assert shell.wbar("merges", "download", merge, "-o", str(tmp_path / "again")) == f"{tmp_path / 'again'}\n"
    assert shell.wbar("merges", "delete", merge) == f"{merge}\n"
    _study(shell, tmp_path)
    weights = tmp_path / "averaged.safetensors"
    assert shell.wbar("download", two, "-o", str(weights)) == f"{weights}\n"
    assert shell.wbar("card", two).startswith("---\n")
    Image.new("L", (8, 8)).save(tmp_path / "dark.png")
    assert shell.wbar("predict", two, str(tmp_path / "dark.png")).startswith(f"{tmp_path / 'dark.png'}: ")
    assert "is not signed" in shell.wbar("signature", two, code=REFUSED)
    for listing, expected in (("jobs", two), ("checkpoints list", checkpoint), ("datasets list", dataset)):
        assert expected in shell.wbar(*listing.split())
    for kind in ("csv", "parquet"):
        assert shell.wbar("export", kind, two, "-o", str(tmp_path / kind)) == f"{tmp_path / kind}\n"
    assert shell.wbar("export", "tensorboard", two, "--logdir", str(tmp_path / "board")) == f"{tmp_path / 'board'}\n"
    assert (
        len(shell.wbar("export", "mlflow", two, "--tracking-uri", f"sqlite:///{tmp_path / 'mlflow.db'}").strip()) == 32
    )
    assert shell.wbar("keys", "create", "another", "--scope", "read").startswith("wbar_")
    (listed,) = [line for line in shell.wbar("keys", "list").splitlines() if "another" in line]
    assert shell.wbar("keys", "revoke", listed.split()[0]) == f"{listed.split()[0]}\n"
    assert "blobs" in shell.wbar("backup", str(tmp_path / "backup"), "--data", str(tmp_path / "data"))
    assert "blobs" in shell.wbar("restore", str(tmp_path / "backup"), "--data", str(tmp_path / "restored"))
    for what in (f"delete {two}", f"checkpoints delete {checkpoint}", f"datasets delete {dataset}"):
        assert shell.wbar(*what.split()) == f"{what.split()[-1]}\n"
    assert "again" not in up.read_text(), up.read_text() + log.read_text()
    assert shell.typed == CLIENT


def _study(shell: Shell, tmp_path: Path) -> None:
    listed = json.loads(shell.wbar("jobs", "--json"))["data"][0]
    inputs = ["--checkpoint", listed["checkpoint"], "--dataset", listed["dataset"]]
    study = shell.wbar("study", "create", *inputs, "--job", '{"method": {"cycles": 3}}', "--seeds", "0,1,2").strip()
    assert "queued" in shell.wbar("study", "pause", study), "one worker has begun one of three at most"
    shell.wbar("study", "resume", study)
    assert "succeeded" in shell.wbar("study", "watch", study)
    assert '"status": "ended"' in shell.wbar("study", "show", study)
    assert study in shell.wbar("study", "list")
    assert shell.wbar("study", "report", study, "-o", str(tmp_path / "study.csv")) == f"{tmp_path / 'study.csv'}\n"
    assert "invalid_transition" in shell.wbar("study", "cancel", study, code=REFUSED)
    assert shell.wbar("study", "delete", study) == f"{study}\n"
