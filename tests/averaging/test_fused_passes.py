"""Both ways to make the passes of a mean give what the formulas say; which of them is taken is found out by trying."""

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from wbar_averaging.blocks import BLOCK
from wbar_averaging.fused_passes import FOREACH, FUSED, Passes, move_corrections, move_means, passes_for

ROOT = Path(__file__).parents[2]
BOTH = pytest.mark.parametrize("passes", [FUSED, FOREACH], ids=["fused", "foreach"])
DTYPES = pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
SHAPES = ((3,), (7, 5), (), (300, 1000), (0,), (2, 3, 4, 4))


def tensors(seed: int, dtype: torch.dtype, scale: float = 1.0) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    made = [scale * torch.randn(shape, dtype=dtype, generator=generator) for shape in SHAPES]
    return [t.to(memory_format=torch.channels_last) if t.dim() == 4 else t for t in made]


@BOTH
@DTYPES
@pytest.mark.parametrize("fraction", [0.5, 1 / 3, 0.9, 1e-4])
def test_means_move_by_their_formula(passes: Passes, dtype: torch.dtype, fraction: float) -> None:
    means, sources = tensors(0, dtype), tensors(1, dtype)
    expected = [m.double() + fraction * (w.double() - m.double()) for m, w in zip(means, sources, strict=True)]
    passes.move_means(means, sources, fraction)
    for mean, value in zip(means, expected, strict=True):
        torch.testing.assert_close(mean.double(), value, rtol=1e-6, atol=1e-6)
    assert all(map(torch.equal, sources, tensors(1, dtype)))


@BOTH
@DTYPES
@pytest.mark.parametrize("fraction", [0.5, 1 / 3, 0.9, 1e-4])
def test_corrections_move_by_their_formula_and_see_the_difference_before_it_is_rounded(
    passes: Passes, dtype: torch.dtype, fraction: float
) -> None:
    unit = torch.finfo(dtype).eps
    means = [1 + t.abs() for t in tensors(0, dtype)]
    sources = [m * (1 + 64 * unit) for m in means]
    corrections = tensors(2, dtype, unit)
    expected = [
        (1 - fraction) * c.double() + fraction * (w.double() - m.double())
        for m, w, c in zip(means, sources, corrections, strict=True)
    ]
    before = [m.clone() for m in means]
    passes.move_corrections(means, sources, corrections, fraction)
    for correction, value in zip(corrections, expected, strict=True):
        torch.testing.assert_close(correction.double(), value, rtol=1e-5, atol=1e-5 * unit)
    assert all(map(torch.equal, means, before))


@DTYPES
def test_both_ways_agree_to_a_rounding(dtype: torch.dtype) -> None:
    results = []
    for passes in (FUSED, FOREACH):
        means, corrections = tensors(0, dtype), tensors(2, dtype, 1e-3)
        for step in range(2, 20):
            passes.move_corrections(means, tensors(step, dtype), corrections, 1 / step)
            passes.move_means(means, tensors(step, dtype), 1 / step)
        results.append([*means, *corrections])
    for fused, foreach in zip(*results, strict=True):
        torch.testing.assert_close(fused, foreach, rtol=32 * torch.finfo(dtype).eps, atol=32 * torch.finfo(dtype).eps)


def test_without_the_kernel_no_temporary_is_larger_than_a_block() -> None:
    means, sources, corrections = ([torch.randn(500, 1000) for _ in range(3)] for _ in range(3))
    small = [torch.randn(10) for _ in range(2000)]
    with torch.profiler.profile(profile_memory=True, acc_events=True) as profile:
        FOREACH.move_corrections(means, sources, corrections, 0.25)
        FOREACH.move_corrections(small, [t.clone() for t in small], [t.clone() for t in small], 0.25)
        FOREACH.move_means(means, sources, 0.25)
    assert 0 < max(event.cpu_memory_usage for event in profile.events()) <= 4 * BLOCK["cpu"]


def test_a_list_may_hold_several_dtypes() -> None:
    means = [*tensors(0, torch.float32), *tensors(0, torch.float64)]
    sources = [*tensors(1, torch.float32), *tensors(1, torch.float64)]
    corrections = [torch.zeros_like(mean) for mean in means]
    move_corrections(means, sources, corrections, 0.25)
    for m, w, c in zip(means, sources, corrections, strict=True):
        torch.testing.assert_close(c, 0.25 * (w - m))
    move_means(means, sources, 1.0)
    for m, w in zip(means, sources, strict=True):
        torch.testing.assert_close(m, w)


# Which of them.


def does_nothing(*_args: Any, **_options: Any) -> None: ...


def rounds_the_terms_apart(
    means: list[torch.Tensor], sources: list[torch.Tensor], corrections: list[torch.Tensor], **options: Any
) -> None:
    for m, w, c in zip(means, sources, corrections, strict=False):
        c.mul_(options["momentum"]).add_(w * (1 - options["momentum"])).sub_(m * (1 - options["momentum"]))


def moves_the_means_too(
    means: list[torch.Tensor], sources: list[torch.Tensor], corrections: list[torch.Tensor], **options: Any
) -> None:
    if corrections:
        FOREACH.move_corrections(means, sources, corrections, 1 - options["momentum"])
        torch._foreach_add_(means, 1e-6)
    else:
        FOREACH.move_means(means, sources, options["lr"])


def takes_other_arguments(_means: list[torch.Tensor]) -> None: ...


@DTYPES
@pytest.mark.parametrize(
    "kernel", [does_nothing, rounds_the_terms_apart, moves_the_means_too, takes_other_arguments, None]
)
def test_a_kernel_that_has_changed_or_gone_is_not_used(
    monkeypatch: pytest.MonkeyPatch, dtype: torch.dtype, kernel: Any
) -> None:
    if kernel is None:
        monkeypatch.delattr(torch, "_fused_sgd_")
    else:
        monkeypatch.setattr(torch, "_fused_sgd_", kernel)
    assert passes_for.__wrapped__("cpu", dtype) is FOREACH


@DTYPES
def test_this_torchs_kernel_is_used_on_the_cpu(dtype: torch.dtype) -> None:
    assert passes_for("cpu", dtype) is FUSED


def test_means_are_as_exact_on_a_torch_without_the_kernel() -> None:
    code = """
import torch
del torch._fused_sgd_
from wbar_averaging import ExponentialMean, RunningMean
torch.manual_seed(0)
start, total = torch.randn(4000), torch.zeros(4000, dtype=torch.float64)
like = {"w": start}
mean, plain, exponential = RunningMean(like), RunningMean(like, compensated=False), ExponentialMean(like)
for n in range(1, 301):
    point = start + 0.05 * torch.randn(4000)
    total += point.double()
    for each in (mean, plain, exponential):
        each.update({"w": point})
error = lambda each: float((each.mean(torch.float64)["w"] - total / 300).norm() / total.norm() * 300)
print(error(mean) <= 5e-8, error(plain) <= 1e-6, error(exponential) < 0.02)
"""
    done = subprocess.run([sys.executable, "-P", "-c", code], capture_output=True, text=True, cwd=ROOT, check=False)
    assert done.stdout.split() == ["True", "True", "True"], done.stderr


def test_a_process_that_has_imported_it_can_still_be_forked() -> None:
    """OpenMP's threads do not survive a fork: a child that computes after them would wait for ever."""
    code = """
import os, torch, wbar_averaging.fused_passes
assert torch.get_num_threads() > 1
pid = os.fork()
if pid == 0:
    torch.isfinite(torch.ones(1_000_000)).all()
    os._exit(7)
assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 7
"""
    environment = {**os.environ, "OMP_NUM_THREADS": "2"}
    subprocess.run([sys.executable, "-P", "-c", code], check=True, timeout=60, env=environment)
