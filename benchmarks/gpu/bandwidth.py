"""`python -m benchmarks.gpu.bandwidth`: what averaging moves through the device's memory, beside a plain copy's speed.

The limit is a copy of 2 GB from one tensor to another (4 GB read and written), in turn with what is measured. The bytes of an
update are those that it cannot do without: every input read once, every output written once. Seconds are the device's, of the
kernels alone: of a CUDA graph of one update where it can be captured, or with the launches between them; the host's time for
the launches, which the device's work hides in training, stands beside them.
"""

import argparse
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from statistics import median
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel
from torchvision import models

from benchmarks.gpu.gauge import synchronize
from benchmarks.gpu.lines import say
from wbar_averaging import SWAG, ExponentialMean, RunningMean, add_folded_pull_gradient, add_pull_gradient

GOAL = 0.8
COPY_BYTES = 2 * 10**9
SETTLED = 100.0  # weight of the first point: the first updates of a compensated mean are not like the later ones


@dataclass(frozen=True)
class Work:
    """One thing to measure. per_element: the bytes that it must move for one weight; goal: whether 80 % was promised."""

    run: Callable[[], object]
    per_element: int
    goal: bool = True


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.gpu.bandwidth", description=__doc__)
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--quick", action="store_true")
    options = parser.parse_args(arguments)
    device = torch.device(options.device)
    torch.manual_seed(0)
    for name in ("resnet18",) if options.quick else ("resnet50", "vit_b_16"):
        _measure(name, getattr(models, name)(weights=None).to(device), device, options.quick)
    return 0


def _measure(name: str, model: nn.Module, device: torch.device, quick: bool) -> None:
    with torch.no_grad():
        tensors = [t.detach() for t in model.state_dict().values() if t.is_floating_point()]
    elements = sum(t.numel() for t in tensors)
    size = COPY_BYTES // (200 if quick else 1)
    source, target = (torch.zeros(size // 4, device=device) for _ in range(2))
    copy = Work(lambda: target.copy_(source), 8)
    repeats, rounds = (1, 2) if quick else (20, 4)
    peers: dict[str, tuple[float, float]] = {}
    for what, work in _works(model, tensors).items():
        try:
            ours, limit = [], []
            alone = _captured(work.run, device)
            for number in range(rounds + 1):
                seconds = _seconds(alone or work.run, repeats, device)
                copied = _seconds(copy.run, max(1, repeats // 4), device)
                if number:
                    ours.append(seconds)
                    limit.append(copied)
            host = _host_seconds(work.run, device)
        except Exception as error:
            say(f"bandwidth/{name}/{what}", error=f"{type(error).__name__}: {error}"[:300])
            continue
        speed, best = work.per_element * elements / median(ours), 8 * len(source) / median(limit)
        peers[what] = median(ours), speed
        figures: dict[str, Any] = {"goal": GOAL, "met": speed / best >= GOAL} if work.goal else {}
        say(
            f"bandwidth/{name}/{what}", elements=elements, tensors=len(tensors), milliseconds=1e3 * median(ours),
            host_milliseconds=1e3 * host, gigabytes_per_second=speed / 1e9, copy_gigabytes_per_second=best / 1e9,
            of_the_copy=speed / best, captured=alone is not None, **figures,
        )  # fmt: skip


def _works(model: nn.Module, tensors: list[Tensor]) -> dict[str, Work]:
    """What is measured, by name, with the bytes per float32 weight."""
    plain = RunningMean(model, compensated=False, check_finite=False)
    checked = RunningMean(model, compensated=False)
    compensated = RunningMean(model, check_finite=False)
    as_it_comes = RunningMean(model)
    summed = RunningMean(model, dtype=torch.float64)
    exponential = ExponentialMean(model, 0.999, warmup=False, check_finite=False)
    for mean in (plain, checked, compensated, as_it_comes, summed):
        mean.update(model, SETTLED)
    exponential.update(model)
    swag = SWAG(model, rank=2)
    parameters = [p.detach().requires_grad_() for p in tensors]
    for p in parameters:
        p.grad = torch.zeros_like(p)
    anchor = [t.clone() for t in tensors]
    own = [t.clone() for t in tensors]
    torchs = AveragedModel(model)
    return {
        "RunningMean, neither": Work(lambda: plain.update(model), 12),
        "RunningMean, compensated": Work(lambda: compensated.update(model), 16),
        "RunningMean, checked": Work(lambda: checked.update(model), 12),
        "RunningMean, checked and compensated": Work(lambda: as_it_comes.update(model), 16),
        "RunningMean, float64 sum, checked (a job's)": Work(lambda: summed.update(model), 20),
        "ExponentialMean (a job's ema)": Work(lambda: exponential.update(model), 16),
        "pull, folded (SGD)": Work(lambda: add_folded_pull_gradient(parameters, anchor, 1e-4), 12),
        "pull, not folded (AdamW)": Work(lambda: add_pull_gradient(parameters, anchor, 1e-4), 16),
        # w, mean, squares, the deviation: three are read, three written.
        "SWAG.update, checked": Work(lambda: swag.update(model), 24, goal=False),
        "torch._foreach_lerp_": Work(lambda: torch._foreach_lerp_(own, tensors, 0.1), 12, goal=False),
        "torch AveragedModel": Work(lambda: torchs.update_parameters(model), 12, goal=False),
    }


def _captured(run: Callable[[], object], device: torch.device) -> Callable[[], object] | None:
    """Return what replays one run's kernels, or None: one that asks the device for a value cannot be captured."""
    if device.type != "cuda":
        return None
    for _ in range(3):
        run()
    graph = torch.cuda.CUDAGraph()
    try:
        with torch.cuda.graph(graph):
            run()
    except RuntimeError:
        torch.cuda.synchronize()
        return None
    return graph.replay


def _seconds(run: Callable[[], object], repeats: int, device: torch.device) -> float:
    """Seconds of one of `repeats` runs, on the device's own clock."""
    if device.type != "cuda":
        began = time.perf_counter()
        for _ in range(repeats):
            run()
        return (time.perf_counter() - began) / repeats
    begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    torch.cuda.synchronize()
    begin.record()
    for _ in range(repeats):
        run()
    end.record()
    torch.cuda.synchronize()
    return begin.elapsed_time(end) / 1e3 / repeats


def _host_seconds(run: Callable[[], object], device: torch.device) -> float:
    """Seconds until one run returns, the device having nothing else to do: launches, and waits where it waits."""
    synchronize(device)
    began = time.perf_counter()
    run()
    seconds = time.perf_counter() - began
    synchronize(device)
    return seconds


if __name__ == "__main__":
    sys.exit(main())
