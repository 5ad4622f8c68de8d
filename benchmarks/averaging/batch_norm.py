"""What recomputing BatchNorm's statistics costs beside torch's `update_bn`, and how far each is from the pooled statistics.

The reference pools every layer's inputs in float64 over the same forward passes. The batches are ordered by class, as a
directory of images is: each has its own brightness, so that the variance between batches, which an average of variances
forgets, is there. The last measure asks what evaluation asks: are these the statistics of what the layers will see?
"""

import time
from collections.abc import Callable
from contextlib import suppress
from copy import deepcopy
from pathlib import Path
from statistics import fmean, median
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.optim.swa_utils import update_bn
from torchvision import models

from benchmarks.averaging.alternate import Turn, absent, alternate, part, threads, timed_row
from benchmarks.table import Findings, Row
from wbar.spec import Network
from wbar_averaging import recompute_batch_norm
from wbar_training.networks.architectures import initialized

try:
    from fvcore.nn.precise_bn import update_bn_stats
except ImportError:
    update_bn_stats = None

OURS, OURS_BF16 = "recompute_batch_norm", "recompute_batch_norm, dtype=torch.bfloat16"
TORCH, TORCH_BF16 = "torch update_bn", "torch update_bn in bfloat16 autocast"
FVCORE = "fvcore update_bn_stats"
GOALS = {OURS: 0.72, OURS_BF16: 0.35}
ERROR_GOAL = 1e-4
BF16_FLAGS = ("avx512_bf16", "amx_bf16", "bf16")  # the last: Arm's

Recompute = Callable[[nn.Module, list[Tensor]], object]


def _bf16(model: nn.Module, batches: list[Tensor]) -> None:
    with torch.autocast("cpu", torch.bfloat16):
        update_bn(batches, model)


def _fvcore(model: nn.Module, batches: list[Tensor]) -> None:
    model.train()
    with torch.no_grad():
        update_bn_stats(model, batches, num_iters=len(batches))


WAYS: dict[str, Recompute] = {
    OURS: recompute_batch_norm,
    OURS_BF16: lambda model, batches: recompute_batch_norm(model, batches, dtype=torch.bfloat16),
    TORCH: lambda model, batches: update_bn(batches, model),
    TORCH_BF16: _bf16,
}
if update_bn_stats is not None:
    WAYS[FVCORE] = _fvcore


def measure(quick: bool) -> Findings:
    found = Findings()
    images, count, rounds = (8, 3, 2) if quick else (32, 4, 3)
    torch.manual_seed(0)
    model = models.resnet50(weights=None)
    batches = by_class(images, count, 224)
    with threads(1):
        found.rows += _speed(model, batches, rounds)
        found.rows += _errors(model, batches, f"{count} batches of {images}")
        found.rows += _errors(model, [*batches[:-1], batches[-1][:1]], f"{count - 1} batches of {images} and one image")
    with threads(2):
        for size in (8, 32, 125):
            for ordered in (False, True):
                found.rows.append(_consistency(size, ordered, 250 if quick else 1000))
    found.notes += [
        f"BatchNorm: one thread; ResNet-50 at 224 px with its first weights; {_bf16_support()}",
        "variance errors: of each layer ‖var − var64‖/‖var64‖ over its channels; their mean",
        "beside evaluation's: of each layer ‖var − seen‖/‖seen‖, where seen is the variance of the layer's inputs in eval mode "
        "over the same images; their median; ResNet-20 with its first weights at 32 px, two threads",
    ]
    return found


def by_class(images: int, count: int, pixels: int) -> list[Tensor]:
    """Smooth random images; each batch has a brightness of its own."""
    brightness = torch.linspace(-1, 1, count)[torch.randperm(count)]
    coarse = torch.randn(count, images, 3, pixels // 16, pixels // 16)
    smooth = [F.interpolate(batch, (pixels, pixels), mode="bicubic") for batch in coarse]
    return [batch + level for batch, level in zip(smooth, brightness, strict=True)]


def layers(model: nn.Module) -> dict[str, _BatchNorm]:
    return {name: module for name, module in model.named_modules() if isinstance(module, _BatchNorm)}


def _speed(model: nn.Module, batches: list[Tensor], rounds: int) -> list[Row]:
    def turn(recompute: Recompute) -> Turn:
        own = deepcopy(model)
        return Turn(lambda: recompute(own, batches))

    times = alternate({name: turn(recompute) for name, recompute in WAYS.items()}, rounds)
    what = f"ResNet-50, {len(batches)} batches of {len(batches[0])}"
    rows = [timed_row(what, times, name, TORCH, GOALS.get(name)) for name in times if name != TORCH]
    return rows if FVCORE in times else [*rows, absent(f"{what}: {FVCORE}")]


def _errors(model: nn.Module, batches: list[Tensor], what: str) -> list[Row]:
    exact = seen(model, batches, training=True)
    errors = dict[str, list[float]]()
    for name, recompute in WAYS.items():
        own = deepcopy(model)
        recompute(own, batches)
        errors[name] = differences(own, exact)
    torchs = fmean(errors[TORCH])
    return [
        Row(
            f"variance error, {what}: {name}",
            _with_worst(fmean(found), found),
            f"{TORCH}: {_with_worst(torchs, errors[TORCH])}",
            part(fmean(found) / torchs),
            f"≤ {part(ERROR_GOAL)}" if name == OURS else "–",
            max(found) <= ERROR_GOAL if name == OURS else None,
        )
        for name, found in errors.items()
        if name != TORCH
    ]


def differences(model: nn.Module, exact: dict[str, Tensor]) -> list[float]:
    """Of each layer, how far its running variance is from this one."""
    found = {name: var.double() for name, layer in layers(model).items() if (var := layer.running_var) is not None}
    return [float((found[name] - var).norm() / var.norm()) for name, var in exact.items()]


def _with_worst(middle: float, errors: list[float]) -> str:
    return f"{part(middle)} (worst layer {part(max(errors))})"


@torch.no_grad()
def seen(model: nn.Module, batches: list[Tensor], training: bool) -> dict[str, Tensor]:
    """The variance of every BatchNorm layer's inputs over all batches, in float64; the model is left as it is."""
    model = deepcopy(model).train(training)
    moments: dict[str, tuple[int, Tensor, Tensor]] = {}  # count, mean, sum of squared deviations

    def watch(name: str) -> Callable[[nn.Module, tuple[Any, ...]], None]:
        def hook(_: nn.Module, inputs: tuple[Any, ...]) -> None:
            values = inputs[0].double().transpose(0, 1).flatten(1)
            count, mean = values.shape[1], values.mean(1)
            squares = (values - mean[:, None]).square().sum(1)
            if name in moments:
                before, center, spread = moments[name]
                total, apart = before + count, mean - center
                squares = squares + spread + apart.square() * (before * count / total)
                mean, count = center + apart * (count / total), total
            moments[name] = (count, mean, squares)

        return hook

    for name, layer in layers(model).items():
        layer.register_forward_pre_hook(watch(name))
    for batch in batches:
        model(batch)
    return {name: squares / (count - 1) for name, (count, _, squares) in moments.items()}


def _consistency(size: int, ordered: bool, count: int) -> Row:
    """Statistics of the network in train mode beside those of the network that will be used."""
    torch.manual_seed(0)
    images = torch.cat(by_class(125, count // 125, 32))
    batches = list((images if ordered else images[torch.randperm(count)]).split(size))
    model = initialized(Network("resnet20", 10))
    shown, times, passes = dict[bool, str](), dict[bool, float](), 0
    for consistent in (False, True):
        own = deepcopy(model)
        recompute_batch_norm(own, batches[:1])  # whatever is made late is made now
        began = time.perf_counter()
        passes = recompute_batch_norm(own, batches, consistent=consistent).passes
        times[consistent] = time.perf_counter() - began
        errors = differences(own, seen(own, batches, training=False))
        shown[consistent] = _with_worst(median(errors), errors)
    return Row(
        f"statistics beside evaluation's, {count} {'ordered' if ordered else 'shuffled'} images in batches of {size}",
        f"consistent=True: {shown[True]}",
        f"consistent=False: {shown[False]}",
        f"{times[True] / times[False]:.1f} × its time, in {passes} passes",
    )


def _bf16_support() -> str:
    flags = set[str]()
    with suppress(OSError):
        flags = set(Path("/proc/cpuinfo").read_text().split())
    found = [flag for flag in BF16_FLAGS if flag in flags]
    return f"the processor's bfloat16 instructions: {', '.join(found) or 'none'}"
