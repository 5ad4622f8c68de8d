"""The normalization and the class order of the start, as far as its outputs on training images tell.

A checkpoint does not say either. Wrong ones cost accuracy without an error, or look like a start near chance.
"""

from collections.abc import Iterator

import torch
from torch import Tensor

from wbar.choices import NormalizationName, NormalizationProbe
from wbar.recipe import IMAGENET, Normalization
from wbar.scores import Score
from wbar_training.data.examples import Examples
from wbar_training.draws import permutation
from wbar_training.reporter import Reporter
from wbar_training.setup import Setup

IMAGES = 512
NEAR = 0.06  # of the accuracy beyond chance that a start can have: below it, it is near chance
EXPLAINED = 0.5  # of the same: above it, an order of the classes explains such a start
ERRORS = 2.0  # standard errors that another normalization must be better by


def find_normalization(setup: Setup, reporter: Reporter) -> NormalizationProbe:
    """Set and return the normalization whose loss is lowest, the dataset's own among near ties.

    The loss is the start's on training images without augmentation, the difference to the dataset's own paired by
    image.
    """
    split, losses = _training_images(setup), dict[NormalizationName, Tensor]()
    statistics = dict(_candidates(setup))
    for name, (mean, std) in statistics.items():
        setup.data.prepare.normalize_by(mean, std)
        losses[name] = setup.evaluator.outputs(setup.model, split).losses
    means = {name: values.mean().item() for name, values in losses.items()}
    better = [name for name, values in losses.items() if _is_better(values, losses["dataset"])]
    chosen: NormalizationName = min(better, key=lambda name: means[name], default="dataset")
    mean, std = statistics[chosen]
    setup.normalize_by(mean, std)
    shown = ", ".join(f"{name} {value:.4f}" for name, value in means.items())
    reporter.log("info", f"normalize auto: the start's loss on training images is {shown}: it is given {chosen}")
    finite = {name: value for name, value in means.items() if value == value and abs(value) != float("inf")}
    normalization = Normalization(mean=list(mean), std=list(std))
    return NormalizationProbe(chosen=chosen, losses=finite, normalization=normalization)


def near_chance(setup: Setup, start: Score) -> str | None:
    """Return a warning for a start whose accuracy on held-out images is near that of a guess; None for other starts.

    Where another order of the classes explains it, the warning proposes that order.
    """
    chance, recipe = setup.data.chance, setup.plan.recipe
    if (
        not setup.data.task.warns_near_chance
        or start.accuracy >= chance + NEAR * (1 - chance)
        or recipe.head == "reset"
        or recipe.reset
    ):
        return None
    warning = f"the start's accuracy on held-out images is {start.accuracy:.1%}, near chance ({chance:.1%}): "
    order = _better_order(setup) if setup.data.task.tells_order else None
    if order is not None:
        names, accuracy = order
        return warning + f"with the classes in another order it would be {accuracy:.1%}: give `classes` as {names}"
    return warning + "check `classes` (the checkpoint's class order), `recipe.normalize` and `recipe.image_size`"


def _better_order(setup: Setup) -> tuple[list[str], float] | None:
    """Return the class order with the most right answers, and their share; None where no order explains the start."""
    from scipy.optimize import linear_sum_assignment  # half a second to import, and only a start near chance needs it

    classes, names = setup.spec.network.classes, setup.data.output_names
    split = _training_images(setup)
    predicted = setup.evaluator.outputs(setup.model, split).answers.argmax(dim=1)
    counts = torch.zeros(classes, classes, dtype=torch.int64)
    counts.index_put_((split.labels.cpu(), predicted), torch.ones_like(predicted), accumulate=True)
    labels, outputs = linear_sum_assignment(-counts.numpy())
    accuracy = counts[labels, outputs].sum().item() / len(predicted)
    if accuracy < setup.data.chance + EXPLAINED * (1 - setup.data.chance):
        return None
    return [names[label] for _, label in sorted(zip(outputs.tolist(), labels.tolist(), strict=True))], accuracy


def _candidates(setup: Setup) -> Iterator[tuple[NormalizationName, tuple[list[float], list[float]]]]:
    channels = setup.spec.network.channels
    yield "dataset", (list(setup.plan.mean), list(setup.plan.std))
    if channels == len(IMAGENET.mean):
        yield "imagenet", (IMAGENET.mean, IMAGENET.std)
    yield "half", ([0.5] * channels, [0.5] * channels)
    yield "none", ([0.0] * channels, [1.0] * channels)


def _training_images(setup: Setup) -> Examples:
    train = setup.data.train
    drawn = permutation(len(train), setup.plan.seed, "start-probe")[:IMAGES]
    return train.select(drawn)


def _is_better(losses: Tensor, than: Tensor) -> bool:
    if not bool(torch.isfinite(losses).all()) or len(losses) < 2:
        return False
    if not bool(torch.isfinite(than).all()):
        return True
    difference = losses - than
    error = difference.std(unbiased=True).item() / len(difference) ** 0.5
    return bool(difference.mean().item() < -ERRORS * error)
