"""`torch.optim.swa_utils` under its own names: switch by changing one import.

    from wbar_averaging import AveragedModel, SWALR, update_bn          # instead of torch.optim.swa_utils

What differs, and why: the mean is compensated (torch's loses √n roundings in float32 and nearly all in bfloat16);
`update_bn` pools exactly, and refuses an empty loader instead of leaving mean 0 and variance 1; integer buffers are
copied. `avg_fn`, `multi_avg_fn` and `use_buffers` mean what they mean there.
"""

import copy
import itertools
from collections.abc import Callable, Iterable
from math import cos, pi
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.optim.lr_scheduler import LRScheduler
from torch.optim.swa_utils import get_ema_avg_fn, get_ema_multi_avg_fn, get_swa_avg_fn, get_swa_multi_avg_fn

from wbar_averaging.batch_norm import recompute_batch_norm
from wbar_averaging.running_mean import RunningMean
from wbar_averaging.sources import unwrapped

__all__ = [
    "SWALR",
    "AveragedModel",
    "get_ema_avg_fn",
    "get_ema_multi_avg_fn",
    "get_swa_avg_fn",
    "get_swa_multi_avg_fn",
    "update_bn",
]

AverageFn = Callable[[Tensor, Tensor, Tensor | int], Tensor]
MultiAverageFn = Callable[[list[Tensor], list[Tensor], Tensor | int], None]


class AveragedModel(nn.Module):
    """A copy of `model` that holds the mean of the weights given to `update_parameters`, and can be called like it.

    device: where the copy lives. avg_fn(averaged, new, n) → averaged, tensor by tensor, or multi_avg_fn(averaged list,
    new list, n) in place; neither: the equal mean, by a compensated `RunningMean`. use_buffers: average the buffers too
    (otherwise they are copied from the latest model, as torch does).

    `state_dict()` has torch's names. The compensation is not in it: after loading, one rounding is lost, once.
    """

    n_averaged: Tensor

    def __init__(
        self,
        model: nn.Module,
        device: int | torch.device | str | None = None,
        avg_fn: AverageFn | None = None,
        multi_avg_fn: MultiAverageFn | None = None,
        use_buffers: bool = False,
    ) -> None:
        super().__init__()
        if avg_fn is not None and multi_avg_fn is not None:
            raise ValueError("give avg_fn or multi_avg_fn, not both")
        self.module = copy.deepcopy(model)
        if device is not None:
            self.module = self.module.to(device)
        self.register_buffer("n_averaged", torch.tensor(0, dtype=torch.long, device=device))
        self.avg_fn, self.multi_avg_fn, self.use_buffers = avg_fn, multi_avg_fn, use_buffers
        self._mean: RunningMean | None = None
        self._versions: list[int] = []  # of the module's tensors when the mean was last written to them
        self.register_load_state_dict_post_hook(_forget_mean)  # type: ignore[no-untyped-call]  # torch does not type it

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        return self.module(*args, **kwargs)

    @torch.no_grad()
    def update_parameters(self, model: nn.Module) -> None:
        """Take the weights of `model` into the mean. Raises ValueError, naming the tensor, if names or shapes differ."""
        ours, theirs = self._averaged(self.module), self._averaged(model)
        n = int(self.n_averaged)
        if self.avg_fn is None and self.multi_avg_fn is None:
            self._update_mean(ours, theirs, n)
        elif n == 0:
            for name, tensor in ours.items():
                tensor.copy_(theirs[name])
        else:
            self._call(list(ours.values()), [theirs[name] for name in ours])
        if not self.use_buffers:
            buffers = dict(unwrapped(model).named_buffers())
            for name, buffer in unwrapped(self.module).named_buffers():
                buffer.copy_(buffers[name])
        self.n_averaged += 1
        self._versions = [tensor._version for tensor in ours.values()]

    def _averaged(self, model: nn.Module) -> dict[str, Tensor]:
        model = unwrapped(model)
        buffers = model.named_buffers() if self.use_buffers else iter(())
        return {name: tensor.detach() for name, tensor in itertools.chain(model.named_parameters(), buffers)}

    def _update_mean(self, ours: dict[str, Tensor], theirs: dict[str, Tensor], n: int) -> None:
        if self._mean is None or self._mean.n == 0 or self._versions != [tensor._version for tensor in ours.values()]:
            # The first update, or weights that somebody wrote: what the module holds stands for n points.
            self._mean = RunningMean(ours, check_finite=False)
            if n:
                self._mean.update(ours, weight=float(n))
        self._mean.update(theirs)
        self._mean.copy_to(ours)

    def _call(self, ours: list[Tensor], theirs: list[Tensor]) -> None:
        if self.avg_fn is not None:
            for mine, new in zip(ours, theirs, strict=True):
                mine.copy_(self.avg_fn(mine, new.to(mine.device), self.n_averaged.to(mine.device)))
            return
        assert self.multi_avg_fn is not None
        groups: dict[tuple[torch.device, torch.dtype], tuple[list[Tensor], list[Tensor]]] = {}
        for mine, new in zip(ours, theirs, strict=True):
            if mine.is_floating_point():
                pair = groups.setdefault((mine.device, mine.dtype), ([], []))
                pair[0].append(mine)
                pair[1].append(new.to(mine.device, mine.dtype))
            else:
                mine.copy_(new)
        for (device, _), (mine_, new_) in groups.items():
            self.multi_avg_fn(mine_, new_, self.n_averaged.to(device))


def _forget_mean(module: nn.Module, _keys: Any) -> None:
    assert isinstance(module, AveragedModel)
    module._mean = None


@torch.no_grad()
def update_bn(loader: Iterable[Any], model: nn.Module, device: int | torch.device | str | None = None) -> None:
    """Recompute the BatchNorm statistics of `model` over `loader`, whose batches are images or tuples that begin with them.

    device: where the images are sent; by default where the model is. See `recompute_batch_norm` for what is raised.
    """

    def forward(module: nn.Module, batch: Any) -> Any:
        images = batch[0] if isinstance(batch, (list, tuple)) else batch
        return module(images if device is None else images.to(device))

    recompute_batch_norm(model, loader, forward_fn=None if device is None else forward)


class SWALR(LRScheduler):
    """From each group's current rate to `swa_lr` within `anneal_epochs` calls of `step`, then constant.

    rate(t) = swa_lr·a(t) + before·(1 − a(t)), with a = ½(1 − cos πu) or a = u, u = min(1, t / anneal_epochs). `before`
    is the rate that the group has at the first `step`. A number or a list, one for each group.
    """

    def __init__(
        self,
        optimizer: torch.optim.Optimizer,
        swa_lr: float | list[float],
        anneal_epochs: int = 10,
        anneal_strategy: Literal["cos", "linear"] = "cos",
        last_epoch: int = -1,
    ) -> None:
        rates = list(swa_lr) if isinstance(swa_lr, (list, tuple)) else [swa_lr] * len(optimizer.param_groups)
        if len(rates) != len(optimizer.param_groups):
            raise ValueError(f"swa_lr has {len(rates)} rates and the optimizer {len(optimizer.param_groups)} groups")
        if anneal_strategy not in ("cos", "linear"):
            raise ValueError(f"anneal_strategy must be one of cos or linear, not {anneal_strategy!r}")
        if not isinstance(anneal_epochs, int) or anneal_epochs < 0:
            raise ValueError(f"anneal_epochs must be 0 or a positive integer, not {anneal_epochs!r}")
        self.anneal_epochs, self.anneal_strategy = anneal_epochs, anneal_strategy
        for group, rate in zip(optimizer.param_groups, rates, strict=True):
            group["swa_lr"] = rate
        self._before: list[float] | None = None
        super().__init__(optimizer, last_epoch)

    def get_lr(self) -> list[Any]:
        groups = self.optimizer.param_groups
        if self.last_epoch == 0:
            return [group["lr"] for group in groups]
        if self._before is None:
            done = self._share(
                self.last_epoch - 1
            )  # above 0 only where annealing goes on from another scheduler's epoch
            self._before = [(g["lr"] - g["swa_lr"] * done) / (1 - done) if done < 1 else g["swa_lr"] for g in groups]
        share = self._share(self.last_epoch)
        return [
            group["swa_lr"] * share + before * (1 - share) for group, before in zip(groups, self._before, strict=True)
        ]

    def _share(self, epoch: int) -> float:
        """a(t) of the formula."""
        linear = min(1.0, max(0, epoch) / self.anneal_epochs) if self.anneal_epochs else float(epoch > 0)
        return linear if self.anneal_strategy == "linear" else (1 - cos(pi * linear)) / 2
