"""This process among those of a job on several devices: its share, and the values that the ranks exchange.

Decisions by the clock or by a message are taken by rank 0, and the others learn them at the same step.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import nn

T = TypeVar("T")
HEARTBEAT_STEPS = 10  # how often the ranks ask rank 0 whether to go on


@dataclass(frozen=True)
class Ranks:
    """This process among those of the job; a single one needs no process group, and every method then does nothing."""

    rank: int = 0
    size: int = 1

    @classmethod
    def here(cls) -> "Ranks":
        """Return the rank of this process."""
        return cls(dist.get_rank(), dist.get_world_size()) if dist.is_initialized() else cls()

    @property
    def leads(self) -> bool:
        """Whether this is rank 0, which decides, writes files and reports."""
        return self.rank == 0

    def share(self, count: int) -> slice:
        """Return this rank's part of `count` items."""
        return slice(count * self.rank // self.size, count * (self.rank + 1) // self.size)

    def settle(self, images: int, own: int, tick: Callable[[int], None]) -> None:
        """Count what this rank's share of a work fell short of (or exceeded) an even one: few batches are shared unevenly.

        images: of the whole work. own: of them, those that this rank has counted by `tick`.
        """
        if self.size > 1 and images // self.size != own:
            tick(images // self.size - own)

    def from_leader(self, value: T) -> T:
        """Return rank 0's value, on every rank."""
        if self.size == 1:
            return value
        held = [value]
        dist.broadcast_object_list(held, src=0)
        return held[0]

    def gathered(self, value: T) -> list[T]:
        """Return every rank's value, in the order of the ranks."""
        if self.size == 1:
            return [value]
        values: list[Any] = [None] * self.size
        dist.all_gather_object(values, value)
        return values

    def share_buffers(self, model: nn.Module) -> None:
        """Copy rank 0's buffers to every rank: after a step each rank has BatchNorm statistics of its own."""
        if self.size > 1:
            for buffer in model.buffers():
                dist.broadcast(buffer, src=0)

    def summed(self, values: torch.Tensor) -> torch.Tensor:
        """Sum over the ranks, in place."""
        if self.size > 1:
            dist.all_reduce(values)
        return values
