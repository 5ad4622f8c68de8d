"""BatchNorm statistics for weights that never trained: exact pooled mean and variance of each layer's inputs.

Averaged weights produce activations whose statistics no snapshot's buffers describe. Every layer's input is pooled over
all elements of all batches with Chan's merge (Chan, Golub & LeVeque 1983) in float64, so that the way images are cut
into batches weighs nothing:  M2 = M2a + M2b + δ²·na·nb/n,  mean = mean_a + δ·nb/n.  The variance is unbiased, M2/(n−1),
as torch's own running variance is. The forward passes run in train mode, where layers normalize by their batch.
"""

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

DROPS_PATHS = ("StochasticDepth", "DropPath")  # torchvision's and timm's; by name, since neither is a dependency


class _Pooled:
    """Count, mean and sum of squared deviations per channel, in float64."""

    def __init__(self, channels: int, device: torch.device) -> None:
        # Apple's GPUs know no float64; nothing else of wbar runs there, so no fallback.
        self.count = 0
        self.mean = torch.zeros(channels, dtype=torch.float64, device=device)
        self.m2 = torch.zeros(channels, dtype=torch.float64, device=device)

    def add(self, activations: Tensor) -> None:
        """activations: (N, C, …), any floating dtype; reduced in float32 at least, merged in float64."""
        dims = [d for d in range(activations.dim()) if d != 1]
        values = activations.detach()
        if values.dtype in (torch.float16, torch.bfloat16):
            values = values.float()
        count = values.numel() // values.shape[1]
        # Two passes over the batch: subtracting the batch's own mean first keeps float32 accurate for any offset.
        variance, mean = torch.var_mean(values, dim=dims, correction=0)
        mean, variance = mean.double(), variance.double()
        total = self.count + count
        delta = mean - self.mean
        self.m2 += variance * count + delta.square() * (self.count * count / total)
        self.mean += delta * (count / total)
        self.count = total


def _layers(model: nn.Module) -> dict[str, _BatchNorm]:
    return {
        name: module
        for name, module in model.named_modules()
        if isinstance(module, _BatchNorm) and module.track_running_stats and module.running_mean is not None
    }


def has_batch_norm(model: nn.Module) -> bool:
    """Whether the model has statistics that `recompute_batch_norm` would recompute."""
    return bool(_layers(model))


@contextmanager
def _observing(model: nn.Module, layers: dict[str, _BatchNorm], pooled: dict[str, _Pooled]) -> Iterator[None]:
    """Train mode with the layers' own running updates off; modes, momenta and hooks are restored on any way out."""
    modes = {module: module.training for module in model.modules()}
    momenta = {layer: layer.momentum for layer in layers.values()}
    counters = {layer: layer.num_batches_tracked for layer in layers.values()}
    buffers = {layer: (layer.running_mean, layer.running_var) for layer in layers.values()}

    def observe(name: str) -> Callable[[nn.Module, tuple[Any, ...]], None]:
        def hook(module: nn.Module, inputs: tuple[Any, ...]) -> None:
            assert isinstance(module, _BatchNorm)
            if name not in pooled:
                pooled[name] = _Pooled(module.num_features, inputs[0].device)
            pooled[name].add(inputs[0])

        return hook

    handles = [layer.register_forward_pre_hook(observe(name)) for name, layer in layers.items()]
    try:
        model.train()
        for module in model.modules():
            if isinstance(module, nn.modules.dropout._DropoutNd) or type(module).__name__ in DROPS_PATHS:
                module.eval()  # the network that will be used drops nothing
        for layer in layers.values():
            layer.momentum = 0.0
            # Without buffers a train-mode forward normalizes by the batch and has nothing to update.
            layer.running_mean = layer.running_var = layer.num_batches_tracked = None
        yield
    finally:
        for handle in handles:
            handle.remove()
        for layer in layers.values():
            layer.momentum = momenta[layer]
            layer.running_mean, layer.running_var = buffers[layer]
            layer.num_batches_tracked = counters[layer]
        for module, mode in modes.items():
            module.training = mode


@torch.no_grad()
def recompute_batch_norm(
    model: nn.Module, batches: Iterable[Any], forward: Callable[[nn.Module, Any], Any] | None = None
) -> int:
    """Replace every BatchNorm layer's running mean and variance by the pooled statistics over `batches`.

    batches: anything iterable; each item is given to `forward(model, batch)`, by default `model(batch)`. Returns the
    number of layers (0: a model without BatchNorm, nothing is read). Raises ValueError, with the old statistics kept,
    when there are no batches, a single value per channel, or a non-finite activation (naming the layer).
    """
    layers = _layers(model)
    if not layers:
        return 0
    pooled: dict[str, _Pooled] = {}
    run = forward or (lambda module, batch: module(batch))
    with _observing(model, layers, pooled):
        for batch in batches:
            run(model, batch)
    if not pooled:
        raise ValueError("there were no batches to compute BatchNorm statistics from: the old ones were kept")
    for name, statistics in pooled.items():
        if statistics.count < 2:
            raise ValueError(f"{name} saw a single value per channel, which has no variance: use more or larger images")
        if not bool(torch.isfinite(statistics.m2).all()):
            raise ValueError(f"the inputs of {name} are not finite: the old statistics were kept")
    for name, statistics in pooled.items():
        layer = layers[name]
        assert layer.running_mean is not None
        assert layer.running_var is not None
        layer.running_mean.copy_(statistics.mean)
        layer.running_var.copy_(statistics.m2 / (statistics.count - 1))
    return len(pooled)
