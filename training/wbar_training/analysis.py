"""Measurements after training: the snapshots as a Gaussian (SWAG), and the loss around the start and w̄.

Everything is read from the files that the job made, so that a resumed attempt measures the same.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from typing import TypeVar

import torch
from torch import Tensor, nn

from wbar.errors import Diverged, JobError
from wbar.flatness_results import Eigenvalue, EpochPoint, Flatness, Interpolation, Line, Plane, PlanePoint
from wbar.loss_surface import Histogram, LossSurface
from wbar.scores import Score
from wbar_averaging import (
    SWAG,
    Epoch,
    bayesian_average,
    distances,
    filter_normalized_direction,
    interpolate,
    line,
    plane,
    sharpness,
    surface,
    top_eigenvalue,
)
from wbar_training.data.examples import Examples
from wbar_training.draws import permutation
from wbar_training.evaluator import Scores
from wbar_training.random_surface import random_surface, surface_images
from wbar_training.reporter import Reporter
from wbar_training.setup import Setup
from wbar_training.swag_file import draw_seed, statistics_of

RANK = 20  # Maddox et al. 2019, section 5
IMAGES = 512  # training images that the loss is measured on, and BatchNorm recomputed from, at every point
BATCH = 256
ALPHAS = tuple(step / 4 for step in range(-4, 9))
POSITIONS = tuple(step / 10 for step in range(-10, 11))
SIDE = 9  # points along a side of the plane
GRADIENTS = 20  # of the ascent that looks for the sharpest corner
EPSILON, HALF = 1e-3, 5e-4  # Keskar et al. 2017, table 3
HESSIAN_STEPS = 30
HESSIAN_TOLERANCE = 0.01


NO_DERIVATIVE = "is not implemented"  # torch's words, of MobileNetV3's hard sigmoid, for instance

T = TypeVar("T")


def attempted(reporter: Reporter, what: str, measure: Callable[[], T]) -> T | None:
    """Return the result of `measure`, or None where it cannot be had: the weights are there already.

    Whatever says that the job cannot do it (JobError, out of memory, ValueError, an operation of the network without a second
    derivative) is caught; a request to stop is not.

    what: the name of the measurement in the job's log, which then says why it failed.
    """
    try:
        return measure()
    except (JobError, ValueError, RuntimeError) as error:
        wrong = isinstance(error, RuntimeError) and not isinstance(error, torch.OutOfMemoryError)
        if wrong and NO_DERIVATIVE not in str(error):
            raise
        reporter.log("warning", f"{what} could not be measured: {str(error).splitlines()[0]}")
        return None


def flatness_images(setup: Setup) -> int:
    """Return about how many images `measure_flatness` sends through the network, gradients counted as the meter does."""
    images = min(IMAGES, len(setup.data.train))
    points = len(ALPHAS) + 2 * len(POSITIONS) + SIDE * SIDE
    held_out = len(ALPHAS) * min(2 * IMAGES, len(setup.data.report))
    if (options := setup.spec.surface) is not None:
        held_out += surface_images(setup, options, images if setup.evaluator.recomputed_images else 0)
    return points * 2 * images + held_out + 3 * (2 * GRADIENTS + 2 * HESSIAN_STEPS) * images


def posterior(setup: Setup, snapshots: Sequence[Mapping[str, Tensor]]) -> SWAG:
    """Return the snapshots' Gaussian. snapshots: whole state dicts of the network. Source: Maddox et al. 2019, algorithm 1."""
    swag = SWAG(setup.evaluator.network, rank=min(RANK, len(snapshots)))
    for snapshot in snapshots:
        swag.update(snapshot)
    return swag


def bayesian_score(setup: Setup, swag: SWAG, samples: int) -> tuple[Scores, list[dict[str, Tensor]]]:
    """Score the Bayesian average of weights drawn from the snapshots' Gaussian, BatchNorm recomputed for each.

    Also returns the statistics that were recomputed, of each draw.

    samples: how many weights are drawn.

    Source: Maddox et al. 2019, algorithm 1.
    """
    evaluator, statistics = setup.evaluator, list[dict[str, Tensor]]()

    def everything(model: nn.Module) -> Tensor:
        statistics.append(statistics_of(model, swag))
        outputs = evaluator.predict_held_out(model)
        parts = [outputs.report, *([outputs.selection] if outputs.selection else []), *outputs.sets.values()]
        return torch.cat([part.answers for part in parts])

    probabilities = bayesian_average(
        evaluator.network,
        swag,
        everything,
        samples=samples,
        seed=draw_seed(setup.plan.seed),
        recompute=evaluator.recompute,
    )
    data = setup.data
    splits = [data.report, *([data.selection] if data.selection else []), *data.sets.values()]
    report, *others = torch.split(probabilities, [len(split) for split in splits])
    selection = others.pop(0) if data.selection else None
    plain = data.task.score(report, data.report.labels)
    on_sets = evaluator.on_sets(dict(zip(data.sets, others, strict=True)), selection)
    return Scores(evaluator.calibrated(plain, report, selection), on_sets), statistics


def measure_flatness(
    setup: Setup, last: Mapping[str, Tensor], averaged: Mapping[str, Tensor], epochs: Sequence[Epoch]
) -> Flatness:
    """Measure distances, sharpness, curvature, and the loss between and around the start, the last snapshot and w̄.

    last, averaged: whole state dicts of the network.
    epochs: the distances that training recorded.

    Raises Diverged or ValueError where the loss is not finite at one of the comparisons; where it is not at a point
    between or around them, that point is null.
    """
    points = {"start": setup.start(), "last": last, "averaged": averaged}
    start, end = points["start"], points["averaged"]
    away = distances(start, end)
    around = _Around(setup)
    return Flatness(
        images=len(around.split),
        distance=away.total,
        distance_by_layer=away.layers,
        length_by_layer=distances({name: torch.zeros_like(t) for name, t in start.items()}, start).layers,
        epochs=[_epoch_point(epoch) for epoch in epochs],
        sharpness={name: around.sharpness(tensors, EPSILON) for name, tensors in points.items()},
        sharpness_half={name: around.sharpness(tensors, HALF) for name, tensors in points.items()},
        top_eigenvalue={name: around.eigenvalue(tensors) for name, tensors in points.items()},
        interpolation=around.between(start, end),
        line=around.line({"start": start, "averaged": end}),
        plane=around.plane(points),
        surface=around.surface(points),
    )


class _Around:
    """The evaluator's network, put at one point after another to evaluate the loss there."""

    def __init__(self, setup: Setup) -> None:
        self.setup, self.network, self.seed = setup, setup.evaluator.network, setup.plan.seed
        drawn = permutation(len(setup.data.train), self.seed, "flatness")[:IMAGES]
        self.split = setup.data.train.select(drawn)
        held_out = permutation(len(setup.data.report), self.seed, "flatness-val")[: 2 * IMAGES]
        self.val = setup.data.report.select(held_out)
        self._lost = False
        self._losses = [self._loss_on(part) for part in self.split.parts(BATCH)]

    def _loss_on(self, part: slice) -> "_BatchLoss":
        batch = self.split.batch(part, self.setup.data.prepare)
        return _BatchLoss(self.setup, batch.inputs, batch.labels.to(batch.inputs.device))

    def sharpness(self, tensors: Mapping[str, Tensor], epsilon: float) -> float:
        self.network.load_state_dict(tensors)
        return sharpness(self.network, self._losses, epsilon=epsilon, steps=GRADIENTS, seed=self.seed).percent

    def eigenvalue(self, tensors: Mapping[str, Tensor]) -> Eigenvalue:
        self.network.load_state_dict(tensors)
        top = top_eigenvalue(
            self.network, self._losses, seed=self.seed, tolerance=HESSIAN_TOLERANCE, max_steps=HESSIAN_STEPS
        )
        relative = top.residual / abs(top.value) if top.value else top.residual
        return Eigenvalue(value=top.value, residual=relative, converged=top.converged)

    def between(self, start: Mapping[str, Tensor], end: Mapping[str, Tensor]) -> Interpolation:
        path = interpolate(self.network, start, end, self._both, ALPHAS, self._recompute)
        return Interpolation(alphas=path.positions, **{name: _finite(values) for name, values in path.values.items()})

    def line(self, centres: Mapping[str, Mapping[str, Tensor]]) -> Line:
        losses = {}
        for name, centre in centres.items():
            direction = filter_normalized_direction(centre, self.seed)
            along = line(self.network, centre, direction, self._train, POSITIONS, self._recompute)
            losses[name] = _finite(along.values["train_loss"])
        return Line(positions=list(POSITIONS), loss=losses)

    def plane(self, points: Mapping[str, Mapping[str, Tensor]]) -> Plane | None:
        try:
            through = plane(points["start"], points["averaged"], points["last"])
        except ValueError:
            return None  # one cycle: w̄ is the last snapshot, and three points need be no plane
        marks = [
            PlanePoint(name=name, x=x, y=y) for name, (x, y) in ((n, through.coordinates(t)) for n, t in points.items())
        ]
        if max(mark.y for mark in marks) < 1e-3 * max(mark.x for mark in marks):
            return None  # the plane would be spanned by rounding errors
        xs, ys = (_frame([getattr(mark, axis) for mark in marks]) for axis in ("x", "y"))
        losses = surface(
            self.network, through.origin, through.x_direction, through.y_direction, self._train, xs, ys, self._recompute
        )
        return Plane(xs=xs, ys=ys, loss=[_finite(row) for row in losses.values["train_loss"]], points=marks)

    def surface(self, points: Mapping[str, Mapping[str, Tensor]]) -> LossSurface | None:
        options = self.setup.spec.surface
        if options is None:
            return None
        return random_surface(self.setup, options, points, self._score, self._recompute)

    def _recompute(self, model: nn.Module) -> None:
        self._lost = False
        try:
            self.setup.evaluator.recompute(model, IMAGES)
        except Diverged:
            self._lost = True  # far outside, where activations overflow: the point has no loss

    def _train(self, model: nn.Module) -> dict[str, float]:
        return {"train_loss": self._score(model, self.split).loss}

    def _both(self, model: nn.Module) -> dict[str, float]:
        train, held_out = self._score(model, self.split), self._score(model, self.val)
        return {
            "train_loss": train.loss,
            "train_accuracy": train.accuracy,
            "val_loss": held_out.loss,
            "val_accuracy": held_out.accuracy,
        }

    def _score(self, model: nn.Module, split: Examples) -> Score:
        if not self._lost:
            try:
                return self.setup.evaluator.score(self.setup.evaluator.predict(model, split), split)
            except Diverged:
                pass
        return Score(accuracy=math.nan, loss=math.nan, ece=math.nan)


class _BatchLoss:
    """The mean loss on one batch, as a function of the network: no augmentation, no autocast, eval mode is the caller's."""

    def __init__(self, setup: Setup, inputs: Tensor, labels: Tensor) -> None:
        self._setup, self._inputs, self._labels = setup, inputs, labels

    def __call__(self, model: nn.Module) -> Tensor:
        self._setup.evaluator.tick("report", len(self._labels))
        return self._setup.data.task.mean_loss(model(self._inputs), self._labels)


def _epoch_point(epoch: Epoch) -> EpochPoint:
    return EpochPoint(
        epoch=epoch.epoch,
        distance=epoch.distance,
        distance_from_start=epoch.distance_from_start,
        update_norms=list(epoch.update_norms) if epoch.update_norms else None,
        update_histogram=Histogram.of(epoch.update_counts),
    )


def _frame(values: Sequence[float]) -> list[float]:
    """Return SIDE points that begin and end a third of the span outside the values."""
    low, high = min(values), max(values)
    margin = (high - low) / 3
    step = (high - low + 2 * margin) / (SIDE - 1)
    return [low - margin + step * index for index in range(SIDE)]


def _finite(values: Sequence[float]) -> list[float | None]:
    return [value if math.isfinite(value) else None for value in values]
