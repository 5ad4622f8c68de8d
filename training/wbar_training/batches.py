"""The training batches of a schedule, in their order: a function of the seed, the epoch and the step in it."""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from wbar_averaging import Position
from wbar_training.data.examples import Batch, Feed, Request
from wbar_training.draws import permutation
from wbar_training.losses import Target
from wbar_training.plan import Plan
from wbar_training.tasks.task import Task


@dataclass(frozen=True)
class TrainingBatch:
    """The batch of one step.

    inputs: (B, C, H, W) on the device.
    images: B.
    """

    inputs: Tensor
    target: Target
    images: int


class Batches:
    """Makes the batches of the positions that it was started with, one after another."""

    def __init__(self, feed: Feed, task: Task, plan: Plan) -> None:
        self._feed, self._task, self._plan = feed, task, plan
        self._epoch, self._order = 0, torch.empty(0)
        self._stream: Iterator[tuple[Batch, Request]] = iter(())

    def start(self, positions: Iterable[Position]) -> None:
        """Go on with the batches of these positions; batches prepared for others are dropped."""
        self._stream = self._feed.stream(self._requests(positions))

    def next(self) -> TrainingBatch:
        """Return the next batch."""
        batch, request = next(self._stream)
        inputs, target = self._task.target(self._plan.recipe, batch, self._plan.seed, request.index)
        return TrainingBatch(inputs, target, len(request.images))

    def _requests(self, positions: Iterable[Position]) -> Iterator[Request]:
        size = self._plan.batch_size
        for position in positions:
            if self._epoch != position.epoch:
                order = permutation(len(self._feed), self._plan.seed, "order", position.epoch)
                self._epoch, self._order = position.epoch, order
            begin = position.step_in_epoch * size
            yield Request(self._order[begin : begin + size], "augment", position.step)
