"""The slow, obvious twins: keep everything, compute in float64, take no shortcut. Fast paths must agree with them."""

from collections.abc import Callable, Iterable, Sequence
from typing import Any

import torch
from torch import Tensor, nn


def mean_of(sources: Sequence[dict[str, Tensor]]) -> dict[str, Tensor]:
    """The mean of every floating-point tensor over all sources, in float64; integers from the last source."""
    out = {}
    for name, first in sources[0].items():
        if first.is_floating_point():
            out[name] = torch.stack([source[name].double() for source in sources]).mean(dim=0)
        else:
            out[name] = sources[-1][name].clone()
    return out


def model_stock(start: dict[str, Tensor], runs: Sequence[dict[str, Tensor]]) -> dict[str, Tensor]:
    """Jang et al. 2024: (1 − t)·w_0 + t·w̄ by tensor, the cosine of every pair of displacements written out."""
    out, mean, n = {}, mean_of(runs), len(runs)
    for name, w0 in start.items():
        if not w0.is_floating_point():
            out[name] = mean[name]
            continue
        away = [(run[name].double() - w0.double()).flatten() for run in runs]
        pairs = [(a, b) for i, a in enumerate(away) for b in away[i + 1 :]]
        cosine = sum((torch.dot(a, b) / (a.norm() * b.norm())).item() for a, b in pairs) / len(pairs)
        t = min(1.0, max(0.0, n * cosine / (1 + (n - 1) * cosine)))
        out[name] = (1 - t) * w0.double() + t * mean[name]
    return out


def swad_range(losses: Sequence[float], n_s: int, n_e: int, r: float) -> tuple[int | None, int, int]:
    """Cha et al. 2021, algorithm 1, as it is printed: t_s (None where none was found), t_e and the evaluations it looked at."""
    energy = [float("nan"), *losses]  # counted from 1
    begin, bound = None, None
    for i in range(1, len(losses) + 1):
        if bound is None:
            if i >= n_s and energy[i - n_s + 1] == min(energy[i - k] for k in range(n_s)):
                begin = i - n_s + 1
                bound = r / n_s * sum(energy[i - k] for k in range(n_s))
        elif i >= n_e and bound < min(energy[i - k] for k in range(n_e)):
            return begin, i - n_e, i
    return begin, len(losses), len(losses)


def pull_value(weights: Sequence[Tensor], mean: Sequence[Tensor], strength: float) -> Tensor:
    """λ‖w̄ − w‖² as an expression that autograd can differentiate."""
    return strength * torch.stack([(m.detach() - w).square().sum() for w, m in zip(weights, mean, strict=True)]).sum()


def batch_norm_statistics(
    model: nn.Module, batches: Iterable[Any], run: Callable[[nn.Module, Any], Any] | None = None
) -> dict[str, tuple[Tensor, Tensor]]:
    """Per BatchNorm layer, mean and unbiased variance over all elements it saw in train mode: every activation is kept."""
    seen: dict[str, list[Tensor]] = {}
    handles = []
    for name, module in model.named_modules():
        if isinstance(module, nn.modules.batchnorm._BatchNorm):

            def keep(_module: nn.Module, inputs: tuple[Tensor, ...], name: str = name) -> None:
                seen.setdefault(name, []).append(inputs[0].detach().double().transpose(0, 1).flatten(1))

            handles.append(module.register_forward_pre_hook(keep))
    was_training = model.training
    saved = {name: buffer.clone() for name, buffer in model.named_buffers()}
    model.train()
    with torch.no_grad():
        for batch in batches:
            (run or (lambda m, b: m(b)))(model, batch)
    for handle in handles:
        handle.remove()
    model.train(was_training)
    for name, buffer in model.named_buffers():
        buffer.copy_(saved[name])
    joined = {name: torch.cat(parts, dim=1) for name, parts in seen.items()}
    return {name: (values.mean(dim=1), values.var(dim=1, unbiased=True)) for name, values in joined.items()}


def schedule(
    cycles: int, high_lr: float, low_lr: float, high_epochs: int, low_epochs: int, steps_per_epoch: int
) -> list[tuple[int, str, int, float]]:
    """(cycle, phase, epoch, rate) of every step, written as the loops that the method is made of."""
    steps = []
    epoch = 0
    for cycle in range(1, cycles + 1):
        for phase, epochs, rate in (("high", high_epochs, high_lr), ("low", low_epochs, low_lr)):
            for _ in range(epochs):
                epoch += 1
                for _ in range(steps_per_epoch):
                    steps.append((cycle, phase, epoch, rate))
    return steps
