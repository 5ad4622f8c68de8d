"""This process among those of a job on several devices: its share, and what the ranks tell each other.

What one rank would decide by the clock or by what it is told, rank 0 decides, and the others hear it at the same step.
"""

from dataclasses import dataclass
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import nn

T = TypeVar("T")
HEARTBEAT_STEPS = 10  # how often the ranks ask rank 0 whether to go on


@dataclass(frozen=True)
class Ranks:
    """This process among those of the job; one alone needs no process group, and every method then does nothing."""

    rank: int = 0
    size: int = 1

    @classmethod
    def here(cls) -> "Ranks":
        return cls(dist.get_rank(), dist.get_world_size()) if dist.is_initialized() else cls()

    @property
    def leads(self) -> bool:
        return self.rank == 0

    def share(self, count: int) -> slice:
        """This rank's part of `count` things."""
        return slice(count * self.rank // self.size, count * (self.rank + 1) // self.size)

    def from_leader(self, value: T) -> T:
        """Rank 0's value, on every rank."""
        if self.size == 1:
            return value
        held = [value]
        dist.broadcast_object_list(held, src=0)
        return held[0]

    def gathered(self, value: T) -> list[T]:
        """Every rank's value, in the order of the ranks."""
        if self.size == 1:
            return [value]
        found: list[Any] = [None] * self.size
        dist.all_gather_object(found, value)
        return found

    def share_buffers(self, model: nn.Module) -> None:
        """Rank 0's buffers on every rank: BatchNorm's tracked statistics are each rank's own after a step."""
        if self.size > 1:
            for buffer in model.buffers():
                dist.broadcast(buffer, src=0)

    def summed(self, values: torch.Tensor) -> torch.Tensor:
        """The sum over the ranks, in place."""
        if self.size > 1:
            dist.all_reduce(values)
        return values
