"""Tensors in memory: combined block by block, without large temporaries, and laid out side by side in one allocation."""

from collections.abc import Iterator

import torch
from torch import Tensor

BLOCK = {"cpu": 2**17}  # elements converted at a time: 512 KiB stay in a core's cache
BLOCK_ELSEWHERE = 2**22  # a pass of tens of microseconds on a GPU, and 16 MiB of float32 beside a model of any size
ALIGN = 64  # elements: each tensor begins on a cache line of its own


def alike(mean: Tensor, source: Tensor) -> bool:
    """Whether the two can be combined element by element as they lie in memory."""
    return (
        mean.dtype == source.dtype
        and mean.device == source.device
        and (mean.stride() == source.stride() or (mean.is_contiguous() and source.is_contiguous()))
    )


@torch.inference_mode(False)
def zeros_in_one(likes: list[Tensor], dtype: torch.dtype, device: torch.device | str | None = None) -> list[Tensor]:
    """A dense tensor of zeros for each of `likes`, in its layout; all of one device side by side in one allocation.

    One allocation lies on large pages, where hundreds of small ones miss the processor's page tables: a tenth of a pass
    over a ResNet-50. Each tensor has a storage of its own, a slice of that allocation: pickle, `torch.save` and deepcopy
    take a tensor's whole storage, which as a view of all would be the size of the model for every tensor. They are
    ordinary tensors under `torch.inference_mode` too, since they are written to after it.
    """
    layouts = [torch.empty_like(like, dtype=dtype, device="meta") for like in likes]
    places = [torch.device(device) if device is not None else like.device for like in likes]
    begins, room = list[int](), dict.fromkeys(places, 0)
    for layout, place in zip(layouts, places, strict=True):
        begins.append(room[place])
        room[place] += -(-layout.numel() // ALIGN) * ALIGN
    stores = {place: torch.zeros(size, dtype=dtype, device=place) for place, size in room.items()}
    return [_slice(stores[place], begin, layout) for layout, place, begin in zip(layouts, places, begins, strict=True)]


def _slice(store: Tensor, begin: int, layout: Tensor) -> Tensor:
    """`layout.numel()` elements of `store` from `begin` on, shaped like `layout`, as a storage that keeps the store alive."""
    end = begin + layout.numel()
    own = store.untyped_storage()[begin * store.itemsize : end * store.itemsize]
    return torch.empty(0, dtype=store.dtype, device=store.device).set_(own, 0, layout.shape, layout.stride())


def block_size(device: torch.device) -> int:
    """How many elements are converted or subtracted at a time on this device."""
    return BLOCK.get(device.type, BLOCK_ELSEWHERE)


def blocks(*tensors: Tensor) -> Iterator[tuple[Tensor, ...]]:
    """Flat pieces of tensors of one shape that are dense and lie in memory alike; of others, all at once."""
    first = tensors[0]
    size = block_size(first.device)
    if first.numel() <= size or not _dense_alike(tensors):
        yield tuple(tensor.detach() for tensor in tensors)
        return
    flat = [tensor.detach().as_strided((tensor.numel(),), (1,), tensor.storage_offset()) for tensor in tensors]
    for begin in range(0, first.numel(), size):
        yield tuple(tensor[begin : begin + size] for tensor in flat)


def pieces(*lists: list[Tensor]) -> Iterator[tuple[list[Tensor], ...]]:
    """The lists in flat pieces, gathered up to a block's size, so that no temporary is larger (but of a tensor that
    cannot be cut); each on one device."""
    gathered: tuple[list[Tensor], ...] = tuple([] for _ in lists)
    elements = 0
    for tensors in zip(*lists, strict=True):
        for piece in blocks(*tensors):
            full = gathered[0] and elements + piece[0].numel() > block_size(piece[0].device)
            if full or (gathered[0] and gathered[0][0].device != piece[0].device):
                yield gathered
                gathered, elements = tuple([] for _ in lists), 0
            for tensor, into in zip(piece, gathered, strict=True):
                into.append(tensor)
            elements += piece[0].numel()
    if gathered[0]:
        yield gathered


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
