"""`torch.optim.swa_utils` under its own names: switch by changing one import.

    from wbar_averaging import AveragedModel, SWALR, update_bn          # instead of torch.optim.swa_utils

`SWALR` and the averaging functions are torch's own objects. `AveragedModel` is a subclass of torch's whose equal mean is
compensated (torch's loses √n roundings in float32 and nearly all in bfloat16), and `update_bn` pools exactly; each
docstring lists what differs.
"""

import copy
import itertools
from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import swa_utils
from torch.optim.swa_utils import SWALR, get_ema_avg_fn, get_ema_multi_avg_fn, get_swa_avg_fn, get_swa_multi_avg_fn

from wbar_averaging.batch_norm import recompute_batch_norm
from wbar_averaging.batches import standard_forward
from wbar_averaging.blocks import blocks, zeros_in_one
from wbar_averaging.sources import unwrapped
from wbar_averaging.wrapped_names import under_names

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
Tensors = tuple[Tensor, ...] | list[Tensor]
MultiAverageFn = Callable[[Tensors, Tensors, Tensor | int], None]


class AveragedModel(swa_utils.AveragedModel):
    """A copy of `model` that holds the mean of the weights given to `update_parameters`, and can be called like it.

    device: where the copy lives. avg_fn(averaged, new, n) → averaged, tensor by tensor, or multi_avg_fn(averaged list,
    new list, n) in place, for each device and dtype; neither: the equal mean. use_buffers: average the buffers too
    (otherwise they are copied from the latest model). dtype: of the copy's floating-point tensors, and so of the mean;
    by default each keeps its own. Raises AssertionError, as torch, if both functions are given, and ValueError for a
    dtype that is not floating-point or would drop the imaginary part of a complex tensor.

    The equal mean is w̄ = m + c: m is what the module holds, w̄ rounded once to its dtype, and c is that rounding's error,
    in float32 or, of float64 tensors, in float64. Each update is c ← c + f·(w − (m + c)), f = 1/(n_averaged + 1), and m + c
    is rounded anew (Dekker 1971). m being the module's own tensor, whatever is written there counts, by whatever way; a c
    that its m does not round off belongs to what stood there before, and is dropped.

    What differs from torch's: the compensation; integer buffers under `use_buffers`, which the equal mean copies from the
    latest model (torch truncates their mean on the CPU, and fails on a GPU); sources are matched by name, also through
    wrappers, and refused where names or shapes differ (torch goes by the order alone); built under `inference_mode`, it
    can be updated outside. `state_dict` and pickles hold what torch's do, so that their reader loses one rounding of w̄,
    once; `copy.deepcopy` copies c as well.
    """

    def __init__(
        self,
        model: nn.Module,
        device: int | torch.device | str | None = None,
        avg_fn: AverageFn | None = None,
        multi_avg_fn: MultiAverageFn | None = None,
        use_buffers: bool = False,
        *,
        dtype: torch.dtype | None = None,
    ) -> None:
        if dtype is not None:
            _check_dtype(model, dtype)
        with torch.inference_mode(False):  # tensors made under inference_mode could not be written to outside of it
            place = torch.device(device) if isinstance(device, str) else device
            super().__init__(model, place, avg_fn, multi_avg_fn, use_buffers)
            if dtype is not None:
                self.module = self.module.to(dtype=dtype)
        self._corrections: dict[str, Tensor] = {}  # c by tensor name, of the averaged ones
        self.register_load_state_dict_post_hook(_forget_corrections)  # type: ignore[no-untyped-call]  # torch does not type it

    @torch.no_grad()
    def update_parameters(self, model: nn.Module) -> None:
        """Take the weights of `model`, or of the model inside a wrapper, into the mean.

        Raises ValueError, before anything is changed, if names or shapes differ or a complex tensor would become real.
        """
        averaged = self._averaged(self.module)
        latest = under_names(averaged, self._averaged(model))
        _check_fits(averaged, latest)
        buffers = () if self.use_buffers else self._buffers_beside(model)
        if not int(self.n_averaged):
            for name, tensor in averaged.items():
                tensor.copy_(latest[name])
            self._corrections = {}
        elif self.avg_fn is None and self.multi_avg_fn is None:
            self._move(averaged, latest, 1 / (int(self.n_averaged) + 1))
        else:
            self._call(list(averaged.values()), list(latest.values()))
        for own, other in buffers:
            own.copy_(other)
        self.n_averaged += 1

    def _averaged(self, model: nn.Module) -> dict[str, Tensor]:
        """The tensors that are averaged, by name."""
        model = unwrapped(model)
        buffers = model.named_buffers() if self.use_buffers else iter(())
        return {name: tensor.detach() for name, tensor in itertools.chain(model.named_parameters(), buffers)}

    def _buffers_beside(self, model: nn.Module) -> list[tuple[Tensor, Tensor]]:
        """The module's buffers, each beside the model's."""
        own = {name: buffer.detach() for name, buffer in unwrapped(self.module).named_buffers()}
        latest = under_names(own, dict(unwrapped(model).named_buffers()))
        _check_fits(own, latest)
        return [(buffer, latest[name].detach()) for name, buffer in own.items()]

    def _move(self, averaged: dict[str, Tensor], latest: dict[str, Tensor], fraction: float) -> None:
        """w̄ ← w̄ + f·(w − w̄), each tensor of w̄ rounded to the module's dtype; integers are copied."""
        means = {name: _real(mean) for name, mean in averaged.items() if _is_averaged(mean)}
        corrections = self._corrections_for(means)
        for name, mean in averaged.items():
            new = latest[name].to(mean.dtype) if mean.is_complex() else latest[name]
            if name in means:
                _move(means[name], _real(new), corrections[name], fraction)
            else:
                mean.copy_(new)

    def _corrections_for(self, means: dict[str, Tensor]) -> dict[str, Tensor]:
        """c by name; zeros, where the module's tensors have changed their shape, dtype or device since the last update."""
        wanted = {name: (mean.shape, mean.device, _wide(mean)) for name, mean in means.items()}
        if wanted != {name: (c.shape, c.device, c.dtype) for name, c in self._corrections.items()}:
            self._corrections = {}
            for dtype in {dtype for _, _, dtype in wanted.values()}:
                names = [name for name in means if wanted[name][2] == dtype]
                zeros = zeros_in_one([means[name] for name in names], dtype)
                self._corrections.update(zip(names, zeros, strict=True))
        return self._corrections

    def _call(self, averaged: list[Tensor], latest: list[Tensor]) -> None:
        """Average by the function that was given, as torch does; the tensors of one device and dtype at a time."""
        pairs = [(old, new.to(old.device, old.dtype)) for old, new in zip(averaged, latest, strict=True)]
        if self.avg_fn is not None:
            for old, new in pairs:
                old.copy_(self.avg_fn(old, new, self.n_averaged.to(old.device)))
            return
        assert self.multi_avg_fn is not None
        groups: dict[tuple[torch.device, torch.dtype], tuple[list[Tensor], list[Tensor]]] = {}
        for old, new in pairs:
            olds, news = groups.setdefault((old.device, old.dtype), ([], []))
            olds.append(old)
            news.append(new)
        for (place, _), (olds, news) in groups.items():
            self.multi_avg_fn(olds, news, self.n_averaged.to(place))

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_corrections": {}}

    def __deepcopy__(self, memo: dict[int, Any]) -> "AveragedModel":
        twin = type(self).__new__(type(self))
        memo[id(self)] = twin
        twin.__dict__.update(copy.deepcopy(self.__dict__, memo))
        return twin


def _forget_corrections(module: nn.Module, _keys: Any) -> None:
    assert isinstance(module, AveragedModel)
    module._corrections = {}


def _check_dtype(model: nn.Module, dtype: torch.dtype) -> None:
    if not dtype.is_floating_point:
        raise ValueError(f"dtype must be floating-point, as torch.float32, not {dtype}")
    for name, tensor in itertools.chain(model.named_parameters(), model.named_buffers()):
        if tensor.is_complex():
            raise ValueError(f"{name} is {tensor.dtype}, which {dtype} would drop the imaginary part of: give no dtype")


def _check_fits(averaged: dict[str, Tensor], latest: dict[str, Tensor]) -> None:
    for name, tensor in averaged.items():
        new = latest[name]
        if new.shape != tensor.shape:
            raise ValueError(f"{name}: {tuple(new.shape)} in the source, {tuple(tensor.shape)} in the average")
        if new.is_complex() and not tensor.is_complex():
            raise ValueError(f"{name}: {new.dtype} in the source, {tensor.dtype} in the average")


def _is_averaged(tensor: Tensor) -> bool:
    return tensor.is_floating_point() or tensor.is_complex()


def _real(tensor: Tensor) -> Tensor:
    """A complex tensor as its real and imaginary parts, which average like any two numbers; in the same memory."""
    return torch.view_as_real(tensor.resolve_conj()) if tensor.is_complex() else tensor


def _wide(mean: Tensor) -> torch.dtype:
    """The dtype of c."""
    return torch.float64 if mean.dtype is torch.float64 else torch.float32


def _move(mean: Tensor, source: Tensor, correction: Tensor, fraction: float) -> None:
    """c ← (1 − f)·c + f·(w − m), then m ← fl(m + c), c ← c + (m_before − m), block by block."""
    for m, w, c in blocks(mean, source, correction):
        anchor = m.to(c.dtype)
        # A c that shows in m's dtype is not the rounding error of this m: somebody wrote m.
        c.masked_fill_((anchor + c).to(m.dtype).to(c.dtype) != anchor, 0.0)
        c.lerp_(w.to(c.device, c.dtype) - anchor, fraction)
        total = (anchor + c).to(m.dtype)
        c.add_(anchor - total.to(c.dtype))
        m.copy_(total)


@torch.no_grad()
def update_bn(loader: Iterable[Any], model: nn.Module, device: int | torch.device | str | None = None) -> None:
    """Recompute the BatchNorm statistics of `model` over `loader`: tensors, tuples or lists that begin with one, or dicts.

    device: where batches are sent; by default where the model is. Raises ValueError, the old statistics kept, for no
    batches, a single value per channel, or a value that is not finite (naming the layer and the batch).

    What differs from torch's, for those who rely on it:

    - mean and unbiased variance are of all elements of all batches; torch averages the batches' own, all weighing alike;
    - `num_batches_tracked` stays as it was; torch leaves the number of batches of this pass in it;
    - a layer that is never called keeps its statistics; torch resets them to mean 0 and variance 1, and so every layer
      when the loader is empty;
    - dropout and stochastic depth are off, and a layer without running statistics is left alone;
    - every module's own mode comes back, and momenta too when an exception passes; torch puts all modules in the root's
      mode, and an exception leaves `momentum=None`;
    - in a process group every rank ends with the statistics of all ranks' batches; torch's ranks go apart.
    """

    def forward(module: nn.Module, batch: Any) -> Any:
        return standard_forward(module, batch, device)

    recompute_batch_norm(model, loader, forward_fn=forward)
