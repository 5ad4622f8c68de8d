"""Tensors in pieces: what two of them can be combined block by block, as they lie in memory, without large temporaries.

The two fused passes stand on the kernel of torch's fused SGD, the one elementwise kernel that reads three tensors and
writes one in a single pass: in single operations a difference would be stored and read again, or cost a call a tensor.
"""

from collections.abc import Iterator

import torch
from torch import Tensor

BLOCK = {"cpu": 2**17}  # elements converted at a time: 512 KiB stay in a core's cache
BLOCK_ELSEWHERE = 2**24
ALIGN = 64  # elements: each tensor begins on a cache line of its own


def alike(mean: Tensor, source: Tensor) -> bool:
    """Whether the two can be combined element by element as they lie in memory."""
    return (
        mean.dtype == source.dtype
        and mean.device == source.device
        and (mean.stride() == source.stride() or (mean.is_contiguous() and source.is_contiguous()))
    )


def zeros_in_one(likes: list[Tensor], dtype: torch.dtype, device: torch.device | str | None = None) -> list[Tensor]:
    """A dense tensor of zeros for each of `likes`, in its layout; all of one device side by side in one allocation.

    One allocation lies on large pages, where hundreds of small ones miss the processor's page tables: a tenth of a pass
    over a ResNet-50.
    """
    layouts = [torch.empty_like(like, dtype=dtype, device="meta") for like in likes]
    places = [torch.device(device) if device is not None else like.device for like in likes]
    begins, room = list[int](), dict.fromkeys(places, 0)
    for layout, place in zip(layouts, places, strict=True):
        begins.append(room[place])
        room[place] += -(-layout.numel() // ALIGN) * ALIGN
    stores = {place: torch.zeros(size, dtype=dtype, device=place) for place, size in room.items()}
    return [
        stores[place].as_strided(layout.shape, layout.stride(), begin)
        for layout, place, begin in zip(layouts, places, begins, strict=True)
    ]


def blocks(*tensors: Tensor) -> Iterator[tuple[Tensor, ...]]:
    """Flat pieces of tensors of one shape that are dense and lie in memory alike; of others, all at once."""
    first = tensors[0]
    size = BLOCK.get(first.device.type, BLOCK_ELSEWHERE)
    if first.numel() <= size or not _dense_alike(tensors):
        yield tuple(tensor.detach() for tensor in tensors)
        return
    flat = [tensor.detach().as_strided((tensor.numel(),), (1,), tensor.storage_offset()) for tensor in tensors]
    for begin in range(0, first.numel(), size):
        yield tuple(tensor[begin : begin + size] for tensor in flat)


def _dense_alike(tensors: tuple[Tensor, ...]) -> bool:
    first = tensors[0]
    if all(tensor.is_contiguous() for tensor in tensors):
        return True
    dense = first.dim() == 4 and first.is_contiguous(memory_format=torch.channels_last)
    return dense and all(tensor.stride() == first.stride() for tensor in tensors)


def converted(mean: Tensor, source: Tensor) -> Iterator[tuple[Tensor, Tensor]]:
    """Blocks of the mean, each with the source's values in the mean's dtype, on its device."""
    if mean.stride() != source.stride() and not (mean.is_contiguous() and source.is_contiguous()):
        source = torch.empty_like(mean, dtype=source.dtype, device=source.device).copy_(source)  # the mean's layout
    for part, value in blocks(mean, source):
        yield part, value.to(mean.device, mean.dtype)


def move_means(means: list[Tensor], sources: list[Tensor], fraction: float) -> None:
    """m ← m − f·(m − w): a fused SGD step up the "gradient" w with the weight decay 1 and the rate f."""
    torch._fused_sgd_(
        means, sources, [],
        weight_decay=1.0, momentum=0.0, lr=fraction, dampening=0.0, nesterov=False, maximize=True, is_first_step=False,
    )  # fmt: skip


def move_corrections(means: list[Tensor], sources: list[Tensor], corrections: list[Tensor], fraction: float) -> None:
    """c ← (1 − f)·c + f·(w − m): what a fused SGD step does to its momentum buffer c.

    The weight decay −1 makes its "gradient" w − m; momentum and dampening are 1 − f; a rate of 0 leaves m as it is.
    """
    keep = 1.0 - fraction
    torch._fused_sgd_(
        means, sources, corrections,
        weight_decay=-1.0, momentum=keep, lr=0.0, dampening=keep, nesterov=False, maximize=False, is_first_step=False,
    )  # fmt: skip
