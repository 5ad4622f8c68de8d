"""A point in weight space: its weights, and how a model is put there and back.

*Weights* are all floating-point tensors of a state dict but BatchNorm's running statistics; a tensor shared under
several names counts once, under the first of them in alphabetical order.
"""

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from wbar_averaging.sources import Source, named_tensors

Recompute = Callable[[nn.Module], object]
LISTED = 20  # differences named in an error


def tensors_of(source: Source) -> dict[str, Tensor]:
    """Return parameters and persistent buffers by state-dict name, detached and not copied; every name of a shared tensor."""
    return {name: tensor.detach() for name, tensor in named_tensors(source).items() if isinstance(tensor, Tensor)}


def first_names(tensors: Mapping[str, Tensor]) -> dict[str, str]:
    """Return for every name the alphabetically first name of the same memory: itself, unless the tensor is shared."""
    first: dict[tuple[object, ...], str] = {}
    out = {}
    for name in sorted(tensors):
        tensor = tensors[name]
        # Tensors without memory (empty, meta) are never the same.
        place = (tensor.data_ptr(), tensor.shape, tensor.stride(), tensor.device) if tensor.numel() else (name,)
        out[name] = first.setdefault(place if place[0] else (name,), name)
    return out


def is_weight(name: str, tensor: Tensor) -> bool:
    """Return whether the tensor is a weight: floating-point, and no running statistic of BatchNorm."""
    return tensor.is_floating_point() and name.rpartition(".")[2] not in ("running_mean", "running_var")


def weights_of(source: Source) -> dict[str, Tensor]:
    """Return the weights by name, in the source's order, shared ones once. Nothing is copied."""
    tensors = tensors_of(source)
    first = first_names(tensors)
    return {name: tensor for name, tensor in tensors.items() if first[name] == name and is_weight(name, tensor)}


def check_same(left: Mapping[str, Tensor], right: Mapping[str, Tensor], whose: tuple[str, str]) -> None:
    """Raise ValueError naming each tensor that is in one of them only, or that has two shapes, and both shapes."""

    def shown(tensors: Mapping[str, Tensor], name: str) -> str:
        return str(tuple(tensors[name].shape)) if name in tensors else "missing"

    pairs = {name: (shown(left, name), shown(right, name)) for name in sorted(left.keys() | right.keys())}
    lines = [f"{name}: {a} in {whose[0]}, {b} in {whose[1]}" for name, (a, b) in pairs.items() if a != b]
    if lines:
        more = [f"… and {len(lines) - LISTED} more"] if len(lines) > LISTED else []
        raise ValueError("; ".join(lines[:LISTED] + more))


@torch.no_grad()
def set_tensors(model: nn.Module, tensors: Mapping[str, Tensor]) -> None:
    """Write a whole state dict into the model, each tensor rounded to the model's dtype. Raises ValueError as check_same."""
    targets = tensors_of(model)
    check_same(targets, tensors, ("the model", "the weights"))
    for name, target in targets.items():
        target.copy_(tensors[name])


@contextmanager
def preserved(model: nn.Module) -> Iterator[None]:
    """Put the model in eval mode for the block; afterwards weights, buffers and modes are as before. Costs one copy of them."""
    modes = [(module, module.training) for module in model.modules()]
    slots = [
        (table, key, tensor)
        for module, _ in modes
        for table in (module._parameters, module._buffers)
        for key, tensor in table.items()
        if tensor is not None
    ]
    copies = {id(tensor): (tensor, tensor.detach().clone()) for _, _, tensor in slots}
    try:
        model.eval()
        yield
    finally:
        for table, key, tensor in slots:
            table[key] = tensor  # type: ignore[assignment]  # a callback may have put another tensor there
        with torch.no_grad():
            for tensor, copy in copies.values():
                tensor.copy_(copy)
        for module, training in modes:
            module.training = training


def check_recompute(model: nn.Module, recompute: Recompute | None) -> None:
    """Raise ValueError for a model with BatchNorm statistics and no `recompute` for them at a new point."""
    if recompute is None:
        for name, module in model.named_modules():
            if isinstance(module, _BatchNorm) and module.running_mean is not None:
                raise ValueError(
                    f"{name or type(module).__name__} has BatchNorm statistics, which do not fit other weights: give "
                    "recompute(model), e.g. with recompute_batch_norm (or `lambda model: None` to keep them on purpose)"
                )


def random_normal(shapes: Mapping[str, torch.Size], generator: torch.Generator | None) -> dict[str, Tensor]:
    """Draw standard normal numbers on the CPU in float32, in the names' alphabetical order.

    They are the same for every device, dtype and order of the tensors.
    """
    return {name: torch.randn(shapes[name], generator=generator, dtype=torch.float32) for name in sorted(shapes)}
