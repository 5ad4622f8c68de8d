"""Networks as shapes: their tensors on torch's meta device, with nothing computed that the shapes do not depend on."""

from typing import Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode

# What initializations are made of: torch.nn.init's functions and the methods of tensors that these call.
FILLS = frozenset((
    "normal_", "trunc_normal_", "uniform_", "xavier_normal_", "xavier_uniform_", "kaiming_normal_", "kaiming_uniform_",
    "orthogonal_", "constant_", "ones_", "zeros_", "fill_", "zero_", "erfinv_", "mul_", "div_", "add_", "sub_", "clamp_",
))  # fmt: skip


class Unfilled(TorchFunctionMode):
    """Leaves out what fills tensors of the meta device: an initialization takes torch longer there than on the CPU."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if getattr(func, "__name__", "") in FILLS:
            filled = args[0] if args else kwargs.get("tensor")
            if isinstance(filled, Tensor) and filled.is_meta:
                return filled
        return func(*args, **kwargs)


class OnMeta(Unfilled):
    """Creates parameters and buffers without memory; small computations (arange, tensor) stay real."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if func in (torch.empty, torch.zeros, torch.ones) and kwargs.get("device") is None:
            kwargs["device"] = "meta"
        return super().__torch_function__(func, types, args, kwargs)
