"""Whole jobs on the device: every precision, channels_last, and architectures whose bits cannot be repeated."""

from pathlib import Path

import pytest
import torch
from torch import nn

from tests.gpu.jobs import job_of, job_on
from tests.training.jobs import METHOD, Recorder, run
from wbar.catalog import ARCHITECTURES
from wbar.errors import OutOfMemory
from wbar.method import HighPhase, LowPhase
from wbar_training.loop import TrainingJob
from wbar_training.outcome import Outcome

pytestmark = pytest.mark.gpu

GENTLE = METHOD.model_copy(update={"high": HighPhase(lr=0.002), "low": LowPhase(lr=0.0002), "cycles": 1})
# Of the training loss, relative to float32's on the CPU.
NEAR = {"float32": 1e-2, "tf32": 5e-2, "bfloat16": 1e-1, "float16": 5e-2}


def done(device: str, folder: Path, precision: str) -> tuple[Outcome, Recorder]:
    told = Recorder()
    return run(job_on(device, folder, GENTLE, recipe_precision=precision), told), told


@pytest.mark.parametrize("precision", NEAR)
def test_every_precision_trains_close_to_float32_on_the_cpu(device: str, tmp_path: Path, precision: str) -> None:
    if precision == "tf32" and not device.startswith("cuda"):
        pytest.skip("tf32 is of GPUs")
    expected, series = done("cpu", tmp_path / "float32", "float32")
    found, told = done(device, tmp_path / precision, precision)
    assert [point.step for point in told.points] == [point.step for point in series.points]
    for point, twin in zip(told.points, series.points, strict=True):
        assert point.loss == pytest.approx(twin.loss, rel=NEAR[precision])
        if (
            point.grad_norm is not None or precision != "float16"
        ):  # its scaler leaves out the first steps, until its scale fits
            assert point.grad_norm == pytest.approx(twin.grad_norm, rel=10 * NEAR[precision])
    for arm in ("start", "averaged", "last", "ensemble"):
        loss = getattr(found.result.metrics, arm).loss
        assert loss == pytest.approx(getattr(expected.result.metrics, arm).loss, rel=4 * NEAR[precision]), arm


def test_float32_is_not_tf32(cuda: torch.device, tmp_path: Path) -> None:
    """torch lets float32 convolutions use tf32 by default."""
    for precision, allowed in (("float32", False), ("tf32", True), ("float32", False)):
        TrainingJob(
            job_on("cuda", tmp_path, recipe_precision=precision).spec, job_on("cuda", tmp_path).workspace, Recorder()
        )
        assert torch.backends.cudnn.allow_tf32 == allowed
        assert torch.get_float32_matmul_precision() == ("high" if allowed else "highest")


def test_the_network_and_its_activations_are_channels_last(device: str, tmp_path: Path) -> None:
    made = job_on(device, tmp_path, GENTLE, recipe_precision="bfloat16")
    job = TrainingJob(made.spec, made.workspace, Recorder())
    seen: list[bool] = []

    def look(module: nn.Module, inputs: tuple[torch.Tensor, ...], output: torch.Tensor) -> None:
        if module.training:
            seen.append(all(t.is_contiguous(memory_format=torch.channels_last) for t in (inputs[0], output)))

    kernels = [module for module in job.model.modules() if isinstance(module, nn.Conv2d)]
    for kernel in kernels:
        kernel.register_forward_hook(look)
    job.run()
    assert len(seen) >= len(kernels)
    assert all(seen)
    assert all(kernel.weight.is_contiguous(memory_format=torch.channels_last) for kernel in kernels)


@pytest.mark.parametrize("name", ["googlenet", "vgg11_bn"])
def test_what_cannot_repeat_its_bits_trains_and_says_so(device: str, tmp_path: Path, name: str) -> None:
    assert not ARCHITECTURES[name].reproducible
    job = job_of(name, "bfloat16", device, tmp_path)
    assert not job.spec.reproducible
    outcome = run(job, Recorder())
    assert outcome.result.metrics.averaged.loss > 0
    if device.startswith("cuda"):
        assert torch.are_deterministic_algorithms_enabled()
        assert torch.is_deterministic_algorithms_warn_only_enabled()


def test_what_does_not_fit_on_the_device_is_out_of_memory(cuda: torch.device, tmp_path: Path) -> None:
    before = torch.cuda.get_per_process_memory_fraction()
    torch.cuda.empty_cache()
    limit = torch.cuda.memory_reserved() + 256 * 2**20
    torch.cuda.set_per_process_memory_fraction(limit / torch.cuda.get_device_properties(cuda).total_memory)
    try:
        with pytest.raises(OutOfMemory, match="the device ran out of memory"):
            run(job_on("cuda", tmp_path, GENTLE, recipe_image_size=(256, 256), recipe_batch_size=64), Recorder())
    finally:
        torch.cuda.set_per_process_memory_fraction(before)
        torch.cuda.empty_cache()
