"""Moments that merge: count, mean and sum of squared deviations per channel, in float64, over batches and over ranks.

Chan, Golub & LeVeque 1983:  mean = Σnᵢmᵢ/n,  M2 = ΣM2ᵢ + Σnᵢ(mᵢ − mean)². Any partition of the elements gives the same.
"""

from collections.abc import Callable

import torch
from torch import Tensor


class Pooled:
    """Count, mean and sum of squared deviations per channel, in float64."""

    def __init__(self, channels: int, device: torch.device) -> None:
        # Apple's GPUs know no float64; nothing else of wbar runs there, so no fallback.
        self.count = 0
        self.mean = torch.zeros(channels, dtype=torch.float64, device=device)
        self.m2 = torch.zeros(channels, dtype=torch.float64, device=device)

    def merge(self, count: int, mean: Tensor, m2: Tensor) -> None:
        """Take in `count` more elements with this mean and sum of squared deviations, (channels,) float64, by Chan's merge."""
        total = self.count + count
        delta = mean - self.mean
        self.m2 += m2 + delta.square() * (self.count * count / total)
        self.mean += delta * (count / total)
        self.count = total

    @property
    def variance(self) -> Tensor:
        """The unbiased variance per channel, (channels,) float64; of two elements or more."""
        return self.m2 / (self.count - 1)


Moments = dict[str, Pooled]  # by layer


def merged(parts: list[Pooled]) -> Pooled:
    """The moments of all parts together: mean = Σnᵢmᵢ/n, M2 = ΣM2ᵢ + Σnᵢ(mᵢ − mean)², as Chan's merge gives one by one."""
    if len(parts) == 1:
        return parts[0]
    whole = Pooled(0, parts[0].mean.device)
    counts = torch.tensor([float(part.count) for part in parts], dtype=torch.float64, device=parts[0].mean.device)[
        :, None
    ]
    means = torch.stack([part.mean for part in parts])
    whole.count = sum(part.count for part in parts)
    whole.mean = (counts * means).sum(dim=0) / whole.count
    whole.m2 = torch.stack([part.m2 for part in parts]).sum(dim=0) + (counts * (means - whole.mean).square()).sum(dim=0)
    return whole


def ranks(across_ranks: bool) -> int:
    """How many ranks take part: those of the process group, or 1 without one or without `across_ranks`."""
    distributed = torch.distributed
    together = across_ranks and distributed.is_available() and distributed.is_initialized()
    return distributed.get_world_size() if together else 1


def across(
    observe: Callable[[], Moments], channels: dict[str, int], device: torch.device, across_ranks: bool
) -> tuple[Moments, Moments]:
    """Call `observe`, and return the moments over all ranks, and those over the other ranks alone.

    channels: by layer, the same on every rank. Raises ValueError if there are no moments at all. An error on one rank is
    raised on every rank, so that none waits for ever.
    """
    if ranks(across_ranks) == 1:
        return _not_empty(observe()), {}
    try:
        error, own = None, observe()
    except Exception as caught:
        error, own = caught, {}
    every = _gathered(channels, device, own, error)
    rank = torch.distributed.get_rank()
    others = [moments for other, moments in enumerate(every) if other != rank]
    return _not_empty(_together(every)), _together(others)


def _not_empty(pooled: Moments) -> Moments:
    if not pooled:
        raise ValueError("there were no batches to compute BatchNorm statistics from: the old ones were kept")
    return pooled


def _together(every: list[Moments]) -> Moments:
    names = {name: None for moments in every for name in moments}
    return {name: merged([moments[name] for moments in every if name in moments]) for name in names}


def _gathered(channels: dict[str, int], device: torch.device, own: Moments, error: Exception | None) -> list[Moments]:
    """The moments of all ranks, in their order, on every rank alike."""
    parts = [torch.tensor([0.0 if error is None else 1.0], dtype=torch.float64, device=device)]
    for name, width in channels.items():
        moments = own.get(name) or Pooled(width, device)
        parts += [torch.tensor([float(moments.count)], dtype=torch.float64, device=device), moments.mean, moments.m2]
    own_row = torch.cat(parts)
    rows = [torch.empty_like(own_row) for _ in range(torch.distributed.get_world_size())]
    torch.distributed.all_gather(rows, own_row)
    if error is not None:
        raise error
    broken = [rank for rank, row in enumerate(rows) if row[0] != 0]
    if broken:
        raise ValueError(f"rank {broken[0]} could not compute its BatchNorm statistics: the old ones were kept")
    return [_unpacked(row, channels) for row in rows]


def _unpacked(row: Tensor, channels: dict[str, int]) -> Moments:
    """What `_gathered` packed into a row: whether there was an error, then count, mean and m2 of each layer."""
    by_layer: Moments = {}
    position = 1
    for name, width in channels.items():
        count = int(row[position])
        moments = Pooled(width, row.device)
        moments.count = count
        moments.mean, moments.m2 = row[position + 1 : position + 1 + 2 * width].view(2, width)
        position += 1 + 2 * width
        if count:
            by_layer[name] = moments
    return by_layer
