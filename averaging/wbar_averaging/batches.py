"""What a batch may be: a tensor, a tuple that begins with one, a dict of keyword arguments; counted, cut and fed."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

ForwardFn = Callable[[nn.Module, Any], Any]


def standard_forward(model: nn.Module, batch: Any, device: int | torch.device | str | None = None) -> Any:
    """model(batch), model(batch[0]) for tuples and lists, model(**batch) for dicts.

    device: where the batch is sent; by default where the model's first parameter is. Images (N, C, H, W) are fed
    channels_last, which convolutions are faster in. Raises TypeError for any other kind of batch.
    """
    if device is None:
        device = next((p.device for p in model.parameters()), torch.device("cpu"))
    if isinstance(batch, dict):
        return model(**{key: _placed(value, device) for key, value in batch.items()})
    if isinstance(batch, (list, tuple)) and batch:
        batch = batch[0]
    if not isinstance(batch, Tensor):
        raise TypeError(f"a batch of type {type(batch).__name__} needs a forward_fn(model, batch)")
    return model(_placed(batch, device))


def _placed(value: Any, device: int | torch.device | str) -> Any:
    if not isinstance(value, Tensor):
        return value
    if value.dim() == 4 and value.is_floating_point():
        return value.to(device, memory_format=torch.channels_last, non_blocking=True)
    return value.to(device, non_blocking=True)


def first_images(batch: Any, most: int | None) -> tuple[Any, int]:
    """The batch cut to at most `most` images, and how many it has: the first dimension of its first tensor.

    A batch without any tensor counts as one image and is not cut.
    """
    tensors = _tensors(batch)
    if not tensors:
        return batch, 1
    size = tensors[0].shape[0] if tensors[0].dim() else 1
    if most is None or size <= most:
        return batch, size
    return _cut(batch, size, most), most


def layer_input(args: tuple[Any, ...], kwargs: dict[str, Any]) -> Tensor:
    """The first tensor that a layer was called with, by position or by name. Raises TypeError if there is none."""
    tensor = next((value for value in (*args, *kwargs.values()) if isinstance(value, Tensor)), None)
    if tensor is None:
        raise TypeError("a BatchNorm layer was called without a tensor")
    return tensor


def _tensors(batch: Any) -> list[Tensor]:
    if isinstance(batch, Tensor):
        return [batch]
    values = batch.values() if isinstance(batch, dict) else batch if isinstance(batch, (list, tuple)) else ()
    return [value for value in values if isinstance(value, Tensor)]


def _cut(batch: Any, size: int, most: int) -> Any:
    if isinstance(batch, Tensor):
        return batch[:most] if batch.dim() and batch.shape[0] == size else batch
    if isinstance(batch, dict):
        return {key: _cut(value, size, most) for key, value in batch.items()}
    if isinstance(batch, (list, tuple)):
        return [_cut(value, size, most) for value in batch]
    return batch
