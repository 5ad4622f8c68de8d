"""A picture of held-out images with what the start and w̄ make of them, for the report, where a task has something to see."""

from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path

from torch import Tensor

from wbar_training.distributed.ranks import Ranks
from wbar_training.setup import Setup


def draw_answers(setup: Setup, averaged: Path) -> Path | None:
    """Draw some held-out images with what the start and w̄ make of them; None where the task has nothing to see.

    averaged: the weights file of w̄.
    """
    weights: dict[str, Callable[[], Mapping[str, Tensor]]] = {
        "start": setup.start,
        "averaged": partial(setup.read, averaged),
    }
    drawn = setup.data.task.draw(setup.evaluator.network, weights, setup.data.report, setup.data.prepare)
    if drawn is None or not Ranks.here().leads:
        return None
    path = averaged.with_name("answers.png")
    drawn.save(path)
    return path
