"""w̄ ← w̄ + (w − w̄)/n, in an explicit accumulation dtype (Izmailov et al. 2018, algorithm 1).

Integer tensors (BatchNorm's counter of batches) are copied from the latest source: their mean means nothing.
"""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

Source = nn.Module | Mapping[str, Tensor]


def named_tensors(source: Source) -> dict[str, Tensor]:
    """Parameters and persistent buffers by name, shared tensors under each of their names."""
    return dict(source.state_dict()) if isinstance(source, nn.Module) else dict(source)


class RunningMean:
    """The mean of every source given to `update`, empty at first: `like` fixes names, shapes and dtypes only.

    dtype: float32 or float64, the accumulation dtype whatever the sources' (a bfloat16 mean over 300 updates loses the
    whole gain). device: where w̄ lives; by default each tensor stays where `like` has it.
    """

    def __init__(
        self, like: Source, dtype: torch.dtype = torch.float32, device: torch.device | str | None = None
    ) -> None:
        if dtype not in (torch.float32, torch.float64):
            raise ValueError(f"dtype must be torch.float32 or torch.float64, not {dtype}")
        self.dtype = dtype
        self.n = 0
        self._mean: dict[str, Tensor] = {}
        self._dtypes: dict[str, torch.dtype] = {}
        for name, tensor in named_tensors(like).items():
            self._dtypes[name] = tensor.dtype
            self._mean[name] = torch.zeros_like(
                tensor.detach(), dtype=dtype if tensor.is_floating_point() else tensor.dtype, device=device
            )

    @torch.no_grad()
    def update(self, source: Source) -> None:
        """Take one more point into the mean.

        Raises ValueError, before anything is changed, if names or shapes differ or a value is not finite.
        """
        tensors = named_tensors(source)
        self._check(tensors)
        self.n += 1
        for name, mean in self._mean.items():
            value = tensors[name].detach()
            if not mean.is_floating_point():
                mean.copy_(value)
            else:
                # One rounding each for the difference and the sum; the temporary is one tensor, not one model.
                mean.add_((value.to(mean.device, mean.dtype) - mean).div_(self.n))

    def _check(self, tensors: Mapping[str, Tensor]) -> None:
        missing, unexpected = sorted(self._mean.keys() - tensors.keys()), sorted(tensors.keys() - self._mean.keys())
        if missing or unexpected:
            raise ValueError(f"the source has other tensors: missing {missing[:20]}, unexpected {unexpected[:20]}")
        for name, mean in self._mean.items():
            value = tensors[name]
            if value.shape != mean.shape:
                raise ValueError(f"{name}: {tuple(value.shape)} in the source, {tuple(mean.shape)} in the mean")
            if value.is_floating_point() and not bool(torch.isfinite(value).all()):
                raise ValueError(f"{name} is not finite in the source: the mean was left as it was (n = {self.n})")

    def mean(self, dtype: torch.dtype | None = None) -> dict[str, Tensor]:
        """w̄ by name, as new tensors in `dtype`, or in each source tensor's own dtype. Raises ValueError at n = 0."""
        if self.n == 0:
            raise ValueError("the mean of no points is undefined: call update first")
        return {
            name: mean.to(dtype or self._dtypes[name], copy=True) if mean.is_floating_point() else mean.clone()
            for name, mean in self._mean.items()
        }

    @torch.no_grad()
    def copy_to(self, target: nn.Module) -> None:
        """Write w̄ into the parameters and buffers of `target`, each rounded once to its own dtype."""
        if self.n == 0:
            raise ValueError("the mean of no points is undefined: call update first")
        tensors = named_tensors(target)
        for name, mean in self._mean.items():
            tensors[name].copy_(mean)

    def state_dict(self) -> dict[str, Any]:
        """All that `load_state_dict` needs to go on with the same bits."""
        return {"n": self.n, "mean": dict(self._mean)}

    @torch.no_grad()
    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restore what `state_dict` gave. Raises ValueError on other names or shapes."""
        self._check(state["mean"])
        for name, mean in self._mean.items():
            if state["mean"][name].dtype != mean.dtype:
                raise ValueError(f"{name}: {state['mean'][name].dtype} in the state, {mean.dtype} in the mean")
            mean.copy_(state["mean"][name])
        self.n = int(state["n"])
