"""The worker beside a real GPU: who holds a context, whose memory comes back, jobs that share a card, jobs that do not fit."""

import gc
import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import pytest
import torch

from tests.conftest import Service, wait_until
from tests.gpu.conftest import running_service
from tests.gpu.jobs import job_on
from tests.material import write_archive, write_start
from tests.training.jobs import METHOD, Recorder, run
from tests.worker.test_recovery import alive, step_of, training_processes
from wbar.client import Client
from wbar.jobs import Job
from wbar_training import graphed
from wbar_training.uploads.dataset_archives import pack_archive
from wbar_training.uploads.limits import UploadLimits
from wbar_worker.gpus import Gpus

pytestmark = [pytest.mark.gpu, pytest.mark.timeout(240)]

SHORT = {"cycles": 2, "high": {"lr": 0.02}, "low": {"lr": 0.002}}
LONG = {"cycles": 25, "high": {"lr": 0.02}, "low": {"lr": 0.002}}
BATCH = 96
MIB = 2**20


def uploaded(client: Client, folder: Path) -> dict[str, str]:
    return {
        "checkpoint": client.checkpoints.create(write_start(folder)).id,
        "dataset": client.datasets.create(write_archive(folder)).id,
    }


def ended(client: Client, job: Job) -> Job:
    return client.jobs.wait(job.id, timeout=150)  # type: ignore[arg-type]  # it was created


def worker_of(service: Service) -> int:
    return service.parts["train"].pid


def children_of(pid: int) -> list[int]:
    found = []
    for entry in Path("/proc").glob("[0-9]*/stat"):
        with suppress(OSError):  # ended meanwhile
            if int(entry.read_text().rsplit(")", 1)[1].split()[1]) == pid:
                found.append(int(entry.parent.name))
    return found


def command_of(pid: int) -> str:
    return Path(f"/proc/{pid}/cmdline").read_bytes().decode(errors="replace")


def mapped(pid: int) -> str:
    """What a process has in its memory, file by file."""
    return Path(f"/proc/{pid}/maps").read_text()


def has_uvm_open(pid: int) -> bool:
    """Whether a process has the device open that CUDA's contexts are made on."""
    links = []
    for entry in Path(f"/proc/{pid}/fd").iterdir():
        try:
            links.append(os.readlink(entry))
        except OSError:  # closed meanwhile
            continue
    return any("nvidia-uvm" in link for link in links)


def test_two_slots_share_a_gpu_and_change_no_bit(device: str, tmp_path: Path) -> None:
    """Both jobs run at once on the one card."""
    with running_service(tmp_path, WBAR_SLOTS="2") as service, service.client() as client:
        inputs = uploaded(client, tmp_path)
        method = LONG | {"cycles": 15}
        jobs = [client.jobs.create(**inputs, method=method, seed=seed) for seed in (5, 6)]
        wait_until(lambda: min(step_of(client, job.id) for job in jobs) > 2, 90, "the first steps of both jobs")
        attempts = training_processes(worker_of(service))
        assert len(attempts) == 2, "both run at once"
        together = [ended(client, job) for job in jobs]
        assert [job.status for job in together] == ["succeeded"] * 2, [job.error for job in together]
        alone = [ended(client, client.jobs.create(**inputs, method=method, seed=seed)) for seed in (5, 6)]
        for one, other in zip(together, alone, strict=True):
            assert one.result is not None
            assert other.result is not None
            assert one.result.weights.sha256 == other.result.weights.sha256
        assert together[0].result != together[1].result


def test_neither_worker_nor_forkserver_holds_a_context(cuda: torch.device, tmp_path: Path) -> None:
    """Nor does that of an ingest worker, which has read an upload, and imported transformers where that is installed."""
    with running_service(tmp_path) as service, service.client() as client:
        inputs = uploaded(client, tmp_path)
        job = client.jobs.create(**inputs, method=LONG)
        wait_until(lambda: step_of(client, job.id) > 2, 90, "the first steps")
        [attempt] = training_processes(worker_of(service))
        assert "libcuda.so" in mapped(attempt), "what a context looks like"
        for worker in (worker_of(service), service.parts["ingest"].pid):
            # The worker itself asks the driver how full the cards are, for which newer drivers open the device: what makes a
            # context is not in its memory.
            assert "libcuda.so" not in mapped(worker)
            servers = [pid for pid in children_of(worker) if "forkserver" in command_of(pid)]
            assert servers, "the worker has a forkserver"
            for server in servers:
                assert not has_uvm_open(server), "the forkserver's context would be every attempt's"
        client.jobs.cancel(job.id)  # type: ignore[arg-type]


def used() -> int:
    """Bytes in use on all GPUs, by the driver, whoever uses them."""
    return sum(gpu.used for gpu in Gpus().memory())


def test_memory_is_back_after_every_attempt_alone(cuda: torch.device, tmp_path: Path) -> None:
    """After a success, a cancel and a failure."""
    if "PYTEST_XDIST_WORKER" in os.environ:
        pytest.skip("measures the whole card, and other tests run beside it: run it without -n")
    with running_service(tmp_path) as service, service.client() as client:
        inputs = uploaded(client, tmp_path)
        before = used()
        assert before > 0 or not Gpus().memory()
        job = client.jobs.create(**inputs, method=LONG)
        wait_until(lambda: step_of(client, job.id) > 2, 90, "the first steps")
        assert used() > before + 100 * MIB, "a context alone takes more"
        attempt = training_processes(worker_of(service))[0]
        client.jobs.cancel(job.id)  # type: ignore[arg-type]
        wait_until(lambda: not alive(attempt), 60, "the end of the attempt")
        wait_until(lambda: used() < before + 32 * MIB, 30, "the memory of a cancelled attempt")
        assert ended(client, client.jobs.create(**inputs, method=SHORT)).status == "succeeded"
        wait_until(lambda: used() < before + 32 * MIB, 30, "the memory of a successful attempt")
        hot = {"cycles": 2, "high": {"lr": 100.0}, "low": {"lr": 100.0}, "pull": 50.0, "back_off": False}
        assert ended(client, client.jobs.create(**inputs, method=hot)).status == "failed"
        wait_until(lambda: used() < before + 32 * MIB, 30, "the memory of a failed attempt")


def peak(folder: Path, accumulate: int) -> int:
    """Bytes that a job needs on the device, in so many parts of a batch, without a graph: a full card has none."""
    gc.collect()
    torch.cuda.empty_cache()
    torch.cuda.reset_peak_memory_stats()
    method = METHOD.model_copy(update={"cycles": 1})
    sizes = {"recipe_image_size": (128, 128), "recipe_batch_size": BATCH, "recipe_accumulate": accumulate}
    job = job_on("cuda", folder, method, **sizes)
    pack_archive(write_archive(folder), job.dataset, UploadLimits(), False)  # whose held-out images are few
    run(job, Recorder())
    return torch.cuda.max_memory_allocated()


def limited(bytes_: int) -> dict[str, str]:
    """The environment in which a process can take so much of the device's memory, and no more."""
    fraction = bytes_ / torch.cuda.get_device_properties(0).total_memory
    return {"PYTORCH_CUDA_ALLOC_CONF": f"per_process_memory_fraction:{fraction:.6f}"}


PROBE = "import torch; torch.empty({}, dtype=torch.uint8, device='cuda')"


def is_limited(environment: dict[str, str], bytes_: int) -> bool:
    done = subprocess.run(
        [sys.executable, "-P", "-c", PROBE.format(2 * bytes_)],
        env=os.environ | environment,
        capture_output=True,
        text=True,
    )
    return done.returncode != 0 and "OutOfMemoryError" in done.stderr


@contextmanager
def small_device(folder: Path) -> Iterator[Service]:
    """A service whose attempts may take what a job needs in two parts of a batch, but not in one."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(graphed, "WARM_UP", 10**9)
        whole, halves = peak(folder / "whole", 1), peak(folder / "halves", 2)
    torch.cuda.empty_cache()
    assert whole > 1.4 * halves, (whole, halves)
    # Near the lower one: with little memory left cuDNN takes kernels that need less.
    limit = halves + (whole - halves) // 5
    if not is_limited(limited(limit), limit):
        pytest.skip("this torch knows no limit of the device's memory from the environment")
    with running_service(folder, **limited(limit)) as service:
        yield service


def test_a_job_that_does_not_fit_is_done_in_halves_or_fails_clearly(cuda: torch.device, tmp_path: Path) -> None:
    with small_device(tmp_path) as service, service.client() as client:
        inputs = uploaded(client, tmp_path)
        recipe = {"batch_size": BATCH, "image_size": [128, 128], "precision": "float32"}
        job = ended(client, client.jobs.create(**inputs, method=SHORT, recipe=recipe))
        assert job.status == "succeeded", job.error
        assert (job.attempts, job.recipe.accumulate, job.recipe.batch_size) == (2, 2, BATCH)
        logs = [event.data["message"] for event in client.jobs.events(job.id) if event.type == "log"]  # type: ignore[arg-type]
        assert any("in 2 parts (recipe.accumulate)" in line for line in logs)
        larger = recipe | {"image_size": [320, 320]}
        job = ended(client, client.jobs.create(**inputs, method=SHORT, recipe=larger))
        assert job.status == "failed"
        assert job.error is not None
        assert job.error.code == "out_of_memory"
        assert "lower recipe.batch_size or image_size" in job.error.message
        assert job.attempts == 2, "one retry, and no more"
        # The worker is none the worse for it.
        assert ended(client, client.jobs.create(**inputs, method=SHORT)).status == "succeeded"
