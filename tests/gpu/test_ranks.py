"""Several ranks: more than there are GPUs are refused, two on one GPU agree over gloo, and NCCL's where two GPUs exist."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from tests.gpu.jobs import job_on
from tests.training.jobs import METHOD, Recorder, run
from wbar.errors import DevicesUnavailable
from wbar.method import HighPhase, LowPhase
from wbar_training.distributed.launch import run_on_ranks

pytestmark = pytest.mark.gpu

GENTLE = METHOD.model_copy(update={"high": HighPhase(lr=0.002), "low": LowPhase(lr=0.0002), "pull": 0.1, "cycles": 1})
ENTRY = "tests.gpu.ranks:on_one_device"


def test_more_ranks_than_gpus_are_refused(cuda: torch.device, tmp_path: Path) -> None:
    there = torch.cuda.device_count()
    job = job_on("cuda", tmp_path, recipe_devices=there + 1, recipe_batch_size=4 * (there + 1))
    with pytest.raises(DevicesUnavailable, match=f"this worker has {there} GPUs for the job"):
        run(job, Recorder())


def test_two_ranks_on_one_device_end_with_the_same_weights(device: str, tmp_path: Path) -> None:
    told = Recorder()
    # For the launcher a job of the CPU, whose ranks talk over gloo; the entry trains on the device.
    job = job_on("cpu", tmp_path, GENTLE, recipe_devices=2, recipe_precision="bfloat16")
    outcome = run_on_ranks(job.spec, replace(job.workspace, threads=2), told, ENTRY)
    assert told.logs[-1] == f"info: equal on 2 ranks, on {torch.device(device).type}: True"
    assert outcome.result.metrics.averaged.loss > 0
    assert sorted(told.snapshots) == [1]


def test_synchronized_statistics_are_those_of_one_rank(cuda: torch.device, tmp_path: Path) -> None:
    """With SyncBatchNorm two ranks see the whole batch: the loss curve is one rank's."""
    alone, together = Recorder(), Recorder()
    run(job_on("cuda", tmp_path / "one", GENTLE), alone)
    job = job_on("cpu", tmp_path / "two", GENTLE, recipe_devices=2, recipe_sync_batch_norm=True)
    run_on_ranks(job.spec, replace(job.workspace, threads=2), together, ENTRY)
    assert together.logs[-1].endswith("equal on 2 ranks, on cuda: True")
    assert [point.step for point in together.points] == [point.step for point in alone.points]
    for shared, single in zip(together.points, alone.points, strict=True):
        assert shared.loss == pytest.approx(single.loss, rel=1e-3)
        assert shared.grad_norm == pytest.approx(single.grad_norm, rel=1e-2)


@pytest.mark.parametrize("synchronized", [False, True])
def test_two_gpus_over_nccl(cuda: torch.device, tmp_path: Path, synchronized: bool) -> None:
    if torch.cuda.device_count() < 2:
        pytest.skip("NCCL needs a GPU for each rank: there is one")
    job = job_on("cuda", tmp_path / "two", GENTLE, recipe_devices=2, recipe_sync_batch_norm=synchronized)
    two = run(job, Recorder())
    again = run(
        replace(job, workspace=replace(job.workspace, scratch=_copied(job.scratch, tmp_path / "again"))), Recorder()
    )
    assert again.weights.read_bytes() == two.weights.read_bytes()


def _copied(inputs: Path, folder: Path) -> Path:
    folder.mkdir()
    for path in inputs.glob("input-*"):
        (folder / path.name).write_bytes(path.read_bytes())
    return folder
