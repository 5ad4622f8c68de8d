"""The training batches of a schedule, in their order: a function of the seed, the epoch and the step in it."""

from collections.abc import Iterable, Iterator

import torch
from torch import Tensor

from wbar_averaging import Position
from wbar_training.data.feed import Feed, Request
from wbar_training.draws import permutation
from wbar_training.plan import Plan


class Batches:
    """Makes the batches of the positions that it was started with, one after another."""

    def __init__(self, feed: Feed, plan: Plan) -> None:
        self._feed, self._plan = feed, plan
        self._epoch, self._order = 0, torch.empty(0)
        self._stream: Iterator[tuple[Tensor, Tensor]] = iter(())

    def start(self, positions: Iterable[Position]) -> None:
        """Go on with the batches of these positions; batches prepared for others are dropped."""
        self._stream = self._feed.stream(self._requests(positions))

    def next(self) -> tuple[Tensor, Tensor]:
        """Return the next batch: inputs (B, C, H, W) on the device, and the indices (B,) of its training images."""
        return next(self._stream)

    def _requests(self, positions: Iterable[Position]) -> Iterator[Request]:
        size = self._plan.batch_size
        for position in positions:
            if self._epoch != position.epoch:
                order = permutation(len(self._feed.split), self._plan.seed, "order", position.epoch)
                self._epoch, self._order = position.epoch, order
            begin = position.step_in_epoch * size
            yield Request(self._order[begin : begin + size], "augment", position.step)
