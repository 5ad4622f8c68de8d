"""A process that reads uploads reaches no network and starts no program, and reads uploads as before."""

import io
import json
import multiprocessing.forkserver
import os
import platform
import resource
import shutil
import signal
import socket
import subprocess
import tempfile
import zipfile
from multiprocessing import Pipe
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from pydantic import ValidationError

from tests.worker.entries import ABORT, SHOW_ENVIRONMENT, TRY_TO_GET_OUT
from wbar.spec import Network
from wbar_averaging import write_safetensors
from wbar_store import process_memory
from wbar_training.messages import Crashed
from wbar_training.networks.architectures import initialized
from wbar_training.uploads import limits as uploads
from wbar_worker import host_memory, isolation, processes
from wbar_worker.children import (
    PACK_BUILTIN,
    VALIDATE_CHECKPOINT,
    VALIDATE_DATASET,
    VERDICTS,
    CheckpointFound,
    CheckpointUpload,
    DatasetPacked,
    DatasetUpload,
    ReaderLimits,
    UploadRejected,
    Verdict,
    warm_up,
)
from wbar_worker.ingest import Ingester
from wbar_worker.processes import Entry
from wbar_worker.settings import GIB, WorkerSettings

LIMITS = ReaderLimits(memory=4 * GIB, seconds=300, content=uploads.UploadLimits())


def verdict(entry: Entry[DatasetUpload], upload: DatasetUpload) -> Verdict:
    child = processes.start(entry, upload)
    try:
        return child.receive(VERDICTS)
    finally:
        child.end()


@pytest.mark.skipif(
    platform.system() != "Linux" or platform.machine() not in isolation._MACHINES,
    reason="the filter is written for Linux",
)
def test_a_reader_of_uploads_cannot_get_out(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as server, socket.socket(socket.AF_UNIX) as other:
        other.bind(str(tmp_path / "socket"))
        other.listen()
        child = processes.start(TRY_TO_GET_OUT, (server.getsockname()[1], tmp_path, os.getpid()))
        try:
            answer = child.receive(VERDICTS)
        finally:
            child.end()
    assert isinstance(answer, Crashed)
    results = json.loads(answer.why)
    if results["filter"] != "2":
        pytest.skip("this kernel takes no seccomp filter")
    assert results == {
        "connect": "EPERM",
        "connect over IPv6": "EPERM",
        "unix socket": "EPERM",
        "run": "EPERM",
        "exec": "EPERM",
        "ptrace": "EPERM",
        "kill": "EPERM",
        "memory": "EACCES",
        "environment": "EACCES",
        "open many": "EMFILE",
        "write much": "EFBIG",
        "threads": "done",
        "filter": "2",
        "no new privileges": "1",
        "capabilities": "",
    }


def test_no_child_is_given_credentials(monkeypatch: pytest.MonkeyPatch) -> None:
    secrets = ["WBAR_DATABASE_URL", "WBAR_BROKER_URL", "AWS_SECRET_ACCESS_KEY", "PGPASSWORD"]
    for name in secrets:
        monkeypatch.setenv(name, f"secret of {name}")
    multiprocessing.forkserver._forkserver._stop()  # type: ignore[attr-defined]  # as in a new worker
    warm_up()
    for _ in range(2):
        assert os.environ["PGPASSWORD"] == "secret of PGPASSWORD"
        child = processes.start(SHOW_ENVIRONMENT, None)
        try:
            answer = child.receive(VERDICTS)
        finally:
            child.end()
        assert isinstance(answer, Crashed)
        assert "PATH" in answer.why
        assert not [name for name in secrets if name in answer.why]
        # Once more with a forkserver that the system has ended, and that the next start brings back.
        pid = multiprocessing.forkserver._forkserver._forkserver_pid  # type: ignore[attr-defined]
        os.kill(pid, signal.SIGKILL)
        os.waitid(os.P_PID, pid, os.WEXITED | os.WNOWAIT)


HOLDER = """
import sys
sys.path.insert(0, sys.argv[1])
from process_memory import close_memory
close_memory()
print("closed", flush=True)
sys.stdin.read()
"""


ISOLATED = """
import os, sys
sys.path.insert(0, sys.argv[1])
import isolation
print(*isolation.isolate(), os.getuid(), os.getgid(), flush=True)
"""
PYTHON = Path("/usr/bin/python3")


@pytest.mark.skipif(os.getuid() != 0 or not PYTHON.exists(), reason="it becomes another user, who must have a Python")
def test_an_ordinary_user_is_isolated_as_well() -> None:
    """As under `wbar up`: by a user namespace, where the system allows one, with the same numbers inside."""
    nobody: dict[str, Any] = {"user": 65534, "group": 65534, "extra_groups": [], "text": True, "capture_output": True}
    may = subprocess.run(["unshare", "--user", "--net", "--map-current-user", "true"], **nobody).returncode == 0
    with tempfile.TemporaryDirectory() as folder:
        Path(folder).chmod(0o755)
        shutil.copy(isolation.__file__, folder)
        package = Path(folder, "wbar_store")
        package.mkdir(0o755)
        (package / "__init__.py").touch()
        shutil.copy(process_memory.__file__, package)
        done = subprocess.run([str(PYTHON), "-S", "-c", ISOLATED, folder], **nobody)
    expected = ["no_new_privs", *(["network"] if may else []), "memory", "capabilities", "seccomp", "65534", "65534"]
    assert done.stdout.split() == expected, done.stderr


@pytest.mark.skipif(os.getuid() != 0 or not PYTHON.exists(), reason="it becomes another user, who must have a Python")
def test_the_memory_of_a_process_with_credentials_is_closed_to_its_user() -> None:
    """Both processes are the user nobody's, as all of `wbar up` are one user's."""
    nobody: dict[str, Any] = {"user": "nobody", "group": "nogroup", "extra_groups": [], "text": True}
    with tempfile.TemporaryDirectory() as folder:
        Path(folder).chmod(0o755)
        shutil.copy(process_memory.__file__, folder)
        command = [str(PYTHON), "-S", "-c", HOLDER, folder]
        holder = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, **nobody)
        with holder:
            assert holder.stdout is not None
            assert holder.stdout.readline() == "closed\n"
            for name in ("environ", "mem"):
                reader = subprocess.run(["/bin/cat", f"/proc/{holder.pid}/{name}"], capture_output=True, **nobody)
                assert reader.returncode == 1
                assert "Permission denied" in reader.stderr
            holder.communicate("")


def test_a_reader_that_aborts_ends_by_its_signal() -> None:
    child = processes.start(ABORT, None)
    try:
        with pytest.raises(EOFError):
            child.receive(VERDICTS)
        assert child.crashed().why == "its process was ended by SIGABRT"
    finally:
        child.end()


def test_checkpoints_are_validated_in_isolation(tmp_path: Path) -> None:
    state = initialized(Network("resnet20", 10)).state_dict()
    torch.save(state, tmp_path / "c.pth")
    found, content = checked(tmp_path / "c.pth")
    assert isinstance(found, CheckpointFound)
    assert (found.facts.network.name, found.as_stored) == ("resnet20", False)
    write_safetensors(tmp_path / "stored", state, {})
    assert content == (tmp_path / "stored").read_bytes()
    found, content = checked(tmp_path / "stored")
    assert isinstance(found, CheckpointFound)
    assert (found.as_stored, content) == (True, b"")
    damaged = bytearray((tmp_path / "c.pth").read_bytes())
    damaged[len(damaged) // 2] ^= 1
    (tmp_path / "c.pth").write_bytes(damaged)
    rejected, content = checked(tmp_path / "c.pth")
    assert isinstance(rejected, UploadRejected)
    assert rejected.fault.code == "corrupt_file"
    assert content == b""


def checked(path: Path) -> tuple[Verdict, bytes]:
    """Return the verdict on a checkpoint, and what the child wrote, which is more than a pipe holds."""
    ours, theirs = Pipe(duplex=False)
    upload = CheckpointUpload(path, path.with_name("unpacked"), theirs, None, None, LIMITS)
    child = processes.start(VALIDATE_CHECKPOINT, upload)
    theirs.close()
    try:
        with open(ours.fileno(), "rb", closefd=False) as content:
            written = content.read()
        return child.receive(VERDICTS), written
    finally:
        child.end()
        ours.close()


def test_datasets_are_packed_in_isolation_and_within_the_limits(tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "d.zip", "w") as archive:
        for name in ("train/a/1.png", "train/a/2.png", "train/b/1.png", "train/b/2.png"):
            image = io.BytesIO()
            Image.new("RGB", (300, 200), "red").save(image, "PNG")
            archive.writestr(name, image.getvalue())
    packed = verdict(
        VALIDATE_DATASET, DatasetUpload(tmp_path / "d.zip", tmp_path / "out", "classification", None, LIMITS)
    )
    assert isinstance(packed, DatasetPacked)
    assert (packed.classes, packed.height, packed.width) == (["a", "b"], 200, 300)
    for content, message in (
        (uploads.UploadLimits(files=3), "4 entries"),
        (uploads.UploadLimits(pixels=50_000), "300x200 pixels, over the limit of 50000"),
        (uploads.UploadLimits(bytes=1000), "unpacks to"),
    ):
        limits = ReaderLimits(memory=4 * GIB, seconds=300, content=content)
        refused = verdict(
            VALIDATE_DATASET, DatasetUpload(tmp_path / "d.zip", tmp_path / "x", "classification", None, limits)
        )
        assert isinstance(refused, UploadRejected)
        assert refused.fault.code == "too_large"
        assert message in refused.fault.message


def test_built_in_sets_are_packed_with_the_network_at_hand(tmp_path: Path) -> None:
    assert not PACK_BUILTIN.isolated
    packed = verdict(PACK_BUILTIN, DatasetUpload("digits", tmp_path / "out", "classification", 100, LIMITS))
    assert isinstance(packed, DatasetPacked)


def test_the_memory_of_an_ingest_follows_the_host(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for there, slots, expected in (
        (64 * GIB, 2, 16 * GIB),
        (256 * GIB, 2, 16 * GIB),
        (24 * GIB, 2, 6 * GIB),
        (24 * GIB, 4, 3 * GIB),
        (2 * GIB, 2, 1 * GIB),
    ):
        monkeypatch.setattr(host_memory, "available", lambda there=there: there)
        assert WorkerSettings(ingest_slots=slots).memory_per_ingest == expected
    explicit = WorkerSettings(ingest_memory=5, image_pixels=7, header_bytes=8, checkpoint_tensors=9, archive_files=10)
    limits = Ingester(None, explicit).limits  # type: ignore[arg-type]
    assert limits.memory == 5
    assert limits.content == uploads.UploadLimits(bytes=20 * GIB, files=10, pixels=7, header_bytes=8, tensors=9)
    assert WorkerSettings().image_pixels == uploads.UploadLimits().pixels
    with pytest.raises(ValidationError):
        WorkerSettings(header_bytes=0)


@pytest.mark.parametrize(
    ("group", "files", "expected"),
    [
        ("0::/a/b", {"sys/fs/cgroup/a/memory.max": "1000\n", "sys/fs/cgroup/a/b/memory.max": "max\n"}, 1000),
        ("0::/../outside", {"sys/fs/cgroup/memory.max": "2000\n"}, 2000),
        ("4:cpu,memory:/x", {"sys/fs/cgroup/memory/memory.limit_in_bytes": "3000\n"}, 3000),
        ("4:memory:/", {"sys/fs/cgroup/memory/memory.limit_in_bytes": "9223372036854771712\n"}, None),
        ("3:cpu:/", {}, None),
    ],
)
def test_a_containers_limit_counts(tmp_path: Path, group: str, files: dict[str, str], expected: int | None) -> None:
    for name, text in ({"proc/self/cgroup": group + "\n"} | files).items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(text)
    machine = resource.getpagesize() * host_memory.os.sysconf("SC_PHYS_PAGES")
    assert host_memory.available(tmp_path) == (expected or machine)
    assert host_memory.available(tmp_path / "elsewhere") == machine
