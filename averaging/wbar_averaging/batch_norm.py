"""BatchNorm statistics for weights that never trained: exact pooled mean and variance of each layer's inputs.

Averaged weights produce activations whose statistics no snapshot's buffers describe. Every layer's input is pooled over
all elements of all batches with Chan's merge (Chan, Golub & LeVeque 1983) in float64, so that the way images are cut
into batches weighs nothing:  M2 = M2a + M2b + δ²·na·nb/n,  mean = mean_a + δ·nb/n.  The variance is unbiased, M2/(n−1),
as torch's own running variance is. A batch's own moments come from the layer's own kernel at momentum 1, at no cost,
wherever that kernel is exact enough.

*What a layer sees.* In train mode every layer normalizes by its batch, so the layers after it are pooled over inputs
that a batch normalized, while the network that will be used normalizes by the pooled statistics: smaller batches, larger
gap. `consistent=True` looks for the statistics s with s = T(s), T(s) being the pooled moments of each layer's inputs
in eval mode under s. A layer's inputs depend only on the layers before it, so T has exactly one fixed point, unless a
layer is called twice. It is found by block Gauss–Seidel iteration: every layer keeps the moments of each batch; when a
batch is read again, its new moments replace its old ones before the layer normalizes it by the moments of all batches.
Each pass over the batches makes at least one more layer exact. The iteration ends when a pass moves no variance by more
than `tolerance`, in practice after a few passes.
"""

from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, contextmanager, nullcontext
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from wbar_averaging.batches import ForwardFn, first_images, layer_input, standard_forward
from wbar_averaging.moments import Moments, Pooled, across, merged
from wbar_averaging.sources import unwrapped

DROPS_PATHS = ("StochasticDepth", "DropPath")  # torchvision's and timm's; by name, since neither is a dependency
EVALUATED = (nn.modules.dropout._DropoutNd, nn.MultiheadAttention, nn.modules.instancenorm._InstanceNorm)
MAX_PASSES = 32
ROUGH_ABOVE = 2**17


@dataclass(frozen=True)
class Recomputed:
    """The result of `recompute_batch_norm`.

    layers: how many have new statistics; 0 for a model without BatchNorm, of which no batch was read. images: how many
    were read on this rank. passes: over the batches (1, or more with `consistent`). change: the largest relative change
    of a variance in the last of several passes (0 with one pass).
    """

    layers: int
    images: int = 0
    passes: int = 0
    change: float = 0.0


Layers = dict[str, _BatchNorm]
Calls = dict[tuple[int, int], Pooled]  # by batch, and by the layer's call within it
Slots = dict[str, Calls]  # by layer: the moments of each call when it last came by


def _layers(model: nn.Module) -> Layers:
    return {
        name: module
        for name, module in model.named_modules()
        if isinstance(module, _BatchNorm) and module.track_running_stats and module.running_mean is not None
    }


def has_batch_norm(model: nn.Module) -> bool:
    """Whether the model has statistics that `recompute_batch_norm` would recompute."""
    return bool(_layers(unwrapped(model)))


@torch.no_grad()
def recompute_batch_norm(
    model: nn.Module,
    batches: Iterable[Any],
    forward_fn: ForwardFn | None = None,
    *,
    images: int | None = None,
    dtype: torch.dtype | None = None,
    consistent: bool = False,
    tolerance: float = 1e-3,
    across_ranks: bool = True,
) -> Recomputed:
    """Replace every BatchNorm layer's running mean and variance by the pooled statistics over `batches`.

    model: any module with BatchNorm1d/2d/3d or SyncBatchNorm layers, also compiled or wrapped in DDP. batches: tensors
    (N, C, …), tuples or lists that begin with one, dicts of keyword arguments, or whatever `forward_fn(model, batch)`
    takes. images: the most images to read (the last batch is cut to fit). dtype: torch.bfloat16 or float16 runs the
    forward passes under autocast; the statistics are kept in float32 and more. consistent: see the module; the batches
    are kept in memory if they are an iterator. across_ranks: in a process group every rank calls this, with its own
    batches, and ends with the statistics of all.

    Dropout and stochastic depth are off. Modes, momenta, buffers and hooks are restored, whatever happens. Raises
    ValueError, with the old statistics kept, when there are no batches, a single value per channel, or a value that is
    not finite (naming the layer and the batch).
    """
    model = unwrapped(model)
    layers = _layers(model)
    if not layers:
        return Recomputed(layers=0)
    reader = _Reader(model, batches, forward_fn or standard_forward, images, dtype, again=consistent)
    channels = {name: layer.num_features for name, layer in layers.items()}
    with _quiet(model):
        if consistent:
            pooled, done = _iterate(layers, channels, reader, tolerance, across_ranks)
        else:
            pooled, _ = across(lambda: _observe_training(layers, reader), channels, reader.device, across_ranks)
            done = Recomputed(len(pooled), reader.count, passes=1)
    _write(layers, pooled)
    return done


def _iterate(
    layers: Layers, channels: dict[str, int], reader: "_Reader", tolerance: float, across_ranks: bool
) -> tuple[Moments, Recomputed]:
    """Pass after pass until no variance moves by more than `tolerance`, MAX_PASSES at most."""
    slots: Slots = {name: {} for name in layers}
    others: Moments = {}  # what the other ranks had after the pass before
    pooled: Moments = {}
    passes, change = 0, float("inf")
    while change > tolerance and passes < MAX_PASSES:
        before, passes = pooled, passes + 1
        observe = partial(_observe_evaluating, layers, slots, others, reader)
        pooled, others = across(observe, channels, reader.device, across_ranks)
        change = max((_moved(pooled[name], before.get(name)) for name in pooled), default=0.0)
    return pooled, Recomputed(len(pooled), reader.count, passes, change)


def _moved(now: Pooled, before: Pooled | None) -> float:
    """The largest relative change of a variance; channels that are as good as dead count little."""
    if before is None:
        return float("inf")
    scale = before.variance + 1e-3 * before.variance.mean() + 1e-30
    return float(((now.variance - before.variance).abs() / scale).max())


def _write(layers: Layers, pooled: Moments) -> None:
    for name, statistics in pooled.items():
        layer = layers[name]
        assert layer.running_mean is not None
        assert layer.running_var is not None
        layer.running_mean.copy_(statistics.mean)
        layer.running_var.copy_(statistics.variance)


class _Reader:
    """The forward passes: how often batches are read, how they are fed, and when the budget is spent."""

    def __init__(
        self,
        model: nn.Module,
        batches: Iterable[Any],
        forward: ForwardFn,
        images: int | None,
        dtype: torch.dtype | None,
        again: bool,
    ) -> None:
        if images is not None and images < 1:
            raise ValueError(f"images must be at least 1, not {images}")
        self.model, self._forward, self._budget, self._dtype = model, forward, images, dtype
        self._batches = batches
        self._keep = again and iter(batches) is batches  # an iterator gives its batches once
        self.count = 0
        self.device = next((p.device for p in model.parameters()), torch.device("cpu"))

    def run(self, before: Callable[[int], None], after: Callable[[int], None]) -> None:
        """Feed every batch within the budget, between `before(index)` and `after(index)`."""
        self.count = 0
        kept: list[Any] = []
        for index, batch in enumerate(self._batches):
            batch, size = first_images(batch, None if self._budget is None else self._budget - self.count)
            before(index)
            with torch.autocast(self.device.type, dtype=self._dtype) if self._dtype else nullcontext():
                self._forward(self.model, batch)
            after(index)
            self.count += size
            if self._keep:
                kept.append(batch)
            if self._budget is not None and self.count >= self._budget:
                break
        if self._keep:
            self._batches, self._keep = kept, False


def _observe_training(layers: Layers, reader: "_Reader") -> Moments:
    """One pass in train mode: each layer normalizes by its batch, and its kernel tells the batch's moments."""
    pooled: Moments = {}
    finite: list[Tensor] = []  # per batch, looked at once at the end: a GPU need not be waited for in between

    def after(_index: int) -> None:
        if pooled:
            finite.append(torch.stack([p.m2.sum() for p in pooled.values()]).isfinite())

    with ExitStack() as stack:
        for name, layer in layers.items():
            stack.enter_context(_own_moments(name, layer, pooled))
        reader.run(lambda _index: None, after)
    for index, flags in enumerate(finite):
        if not bool(flags.all()):
            raise _not_finite(list(pooled)[int((~flags).nonzero()[0])], index)
    return _checked(pooled)


def _observe_evaluating(layers: Layers, slots: Slots, others: Moments, reader: "_Reader") -> Moments:
    """One pass in eval mode: each layer normalizes by the newest moments of all batches, those of `others` included."""
    now = [0]
    seen: Slots = {name: {} for name in layers}
    with ExitStack() as stack:
        for name, layer in layers.items():
            stack.enter_context(_newest(layer, seen[name], slots[name], others.get(name), now))
        reader.run(lambda index: now.__setitem__(0, index), lambda _index: None)
    for name, kept in seen.items():
        slots[name] = kept
        for (index, _), part in kept.items():
            if not bool(part.m2.isfinite().all()):
                raise _not_finite(name, index)
    return _checked({name: merged(list(kept.values())) for name, kept in slots.items() if kept})


def _not_finite(name: str, index: int) -> ValueError:
    return ValueError(f"the inputs of {name} are not finite in batch {index}: the old statistics were kept")


def _checked(pooled: Moments) -> Moments:
    for name, statistics in pooled.items():
        if statistics.count < 2:
            raise ValueError(f"{name} saw a single value per channel, which has no variance: use more or larger images")
    return pooled


def _kernel_is_rough(inputs: Tensor, count: int) -> bool:
    """The CPU kernel for channels_last adds up in float32 one by one: 6e-5 off at 400,000 elements, 4e-4 at 1.6 million.

    Of half-precision inputs it is as good as they are.
    """
    float32 = inputs.dtype is torch.float32 and inputs.device.type == "cpu"
    return float32 and count > ROUGH_ABOVE and not inputs.is_contiguous()


def _moments(inputs: Tensor, count: int) -> tuple[Tensor, Tensor]:
    """Mean and sum of squared deviations per channel, in float64, from two passes over the batch in float32 at least.

    Subtracting the batch's own mean first keeps float32 accurate for any offset.
    """
    values = inputs.detach()
    values = values.float() if values.dtype in (torch.float16, torch.bfloat16) else values
    dims = [dim for dim in range(values.dim()) if dim != 1]
    variance, mean = torch.var_mean(values, dim=dims, correction=0)
    return mean.double(), variance.double() * count


@contextmanager
def _own_moments(name: str, layer: _BatchNorm, pooled: Moments) -> Iterator[None]:
    """The layer in train mode at momentum 1 on scratch buffers: after each call they hold the batch's own moments.

    A single value per channel has no variance to be normalized by: it is normalized by what was pooled before it.
    """
    assert layer.running_mean is not None
    mean, variance = torch.zeros_like(layer.running_mean), torch.ones_like(layer.running_mean)
    before = (layer.running_mean, layer.running_var, layer.num_batches_tracked, layer.momentum, layer.training)
    own_forward = layer.__dict__.get("forward")

    def train() -> None:
        layer.running_mean, layer.running_var, layer.num_batches_tracked = mean.zero_(), variance.fill_(1), None
        layer.momentum, layer.training = 1.0, True

    def enter(_module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        train()
        inputs, before_it = layer_input(args, kwargs), pooled.get(name)
        if inputs.numel() == inputs.shape[1] and before_it is not None and before_it.count > 1:
            layer.running_mean, layer.running_var = before_it.mean.to(mean.dtype), before_it.variance.to(mean.dtype)
            layer.training = False

    def leave(_module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], _output: Any) -> None:
        inputs = layer_input(args, kwargs)
        count = inputs.numel() // inputs.shape[1]
        untouched = layer.running_mean is not mean or (not bool(mean.any()) and bool((variance == 1).all()))
        exact = mean.dtype in (torch.float32, torch.float64) and not untouched and not _kernel_is_rough(inputs, count)
        own = pooled.setdefault(name, Pooled(len(mean), mean.device))
        if exact:
            own.merge(count, mean.double(), variance.double() * (count - 1))
        else:
            own.merge(count, *_moments(inputs, count))

    handles = [
        layer.register_forward_pre_hook(enter, with_kwargs=True),
        layer.register_forward_hook(leave, with_kwargs=True),
    ]
    try:
        if type(layer) is nn.SyncBatchNorm:
            # Its own forward would talk to the other ranks, which may have another number of batches.
            layer.__dict__["forward"] = lambda x: F.batch_norm(
                x, layer.running_mean, layer.running_var, layer.weight, layer.bias, layer.training, 1.0, layer.eps
            )
        yield
    finally:
        for handle in handles:
            handle.remove()
        layer.__dict__.pop("forward", None)
        if own_forward is not None:
            layer.__dict__["forward"] = own_forward
        layer.running_mean, layer.running_var, layer.num_batches_tracked, layer.momentum, layer.training = before


@contextmanager
def _newest(layer: _BatchNorm, seen: Calls, before: Calls, others: Pooled | None, now: list[int]) -> Iterator[None]:
    """The layer in eval mode; `seen` takes this pass's moments, `before` has those of calls that are still to come."""
    saved = (layer.running_mean, layer.running_var, layer.training)
    assert layer.running_mean is not None
    dtype = layer.running_mean.dtype

    def hook(_module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        inputs = layer_input(args, kwargs)
        count = inputs.numel() // inputs.shape[1]
        mean, m2 = _moments(inputs, count)
        own = Pooled(len(mean), mean.device)
        own.merge(count, mean, m2)
        seen[now[0], sum(batch == now[0] for batch, _ in seen)] = own
        rest = [part for call, part in before.items() if call not in seen]
        whole = merged([*seen.values(), *rest, *([others] if others else [])])
        layer.running_mean = whole.mean.to(dtype)
        layer.running_var = (whole.m2 / max(whole.count - 1, 1)).to(dtype)

    handle = layer.register_forward_pre_hook(hook, with_kwargs=True)
    try:
        layer.training = False
        yield
    finally:
        handle.remove()
        layer.running_mean, layer.running_var, layer.training = saved


@contextmanager
def _quiet(model: nn.Module) -> Iterator[None]:
    """Put the model in train mode inside, but what drops activations at random or has other statistics (dropout, stochastic
    depth, InstanceNorm) in eval mode, as in the network that will be used; every module's mode is restored after it."""
    modes = {module: module.training for module in model.modules()}
    try:
        model.train()
        for module in model.modules():
            if isinstance(module, EVALUATED) or type(module).__name__ in DROPS_PATHS:
                module.training = False
        yield
    finally:
        for module, mode in modes.items():
            module.training = mode
