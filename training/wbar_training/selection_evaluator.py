"""The selection split as an evaluator of means: what an average asks when it selects, and what it may cost."""

from collections.abc import Mapping
from dataclasses import dataclass

from torch import Tensor

from wbar.errors import Diverged
from wbar.method import SelectBy
from wbar.schedule import Schedule
from wbar_training.averages.average import Evaluated, Mean
from wbar_training.averages.choice import (
    SELECTION_BATCH_NORM_IMAGES,
    SHARE,
    TRAINING,
    ChoiceLimits,
    Effort,
    stratified_halves,
)
from wbar_training.data.examples import Examples
from wbar_training.draws import generator, permutation
from wbar_training.reporter import Reporter
from wbar_training.setup import Setup


@dataclass(frozen=True)
class SelectionEvaluator:
    """The evaluator of one job. limits: from `limits_of`."""

    setup: Setup
    reporter: Reporter
    limits: ChoiceLimits

    def losses(self, mean: Mean) -> Tensor:
        """Return a mean's loss on each image, BatchNorm recomputed, (N,) float64."""
        return self.setup.evaluator.selection_losses(mean)

    def values(self, mean: Mean, effort: Effort, own_statistics: bool) -> Evaluated | None:
        """Evaluate a mean on the first images of the selection split, in an order that the seed fixes."""
        evaluator, split = self.setup.evaluator, self._first(effort.images)
        try:
            evaluator.hold(mean, recompute=not own_statistics, images=effort.recomputed, once=True)
            outputs = evaluator.predict(evaluator.network, split)
        except Diverged:
            return None
        by: SelectBy = getattr(self.setup.spec.method, "select_by", "loss")
        return Evaluated(evaluator.task.per_image(outputs, split.labels, by), outputs.losses.mean().item())

    def halves(self, images: int) -> list[Tensor]:
        """Return the indices of stratified halves of the first images; the seed fixes them."""
        strata = self.setup.data.task.strata(self._first(images).labels)
        return stratified_halves(strata, generator(self.setup.plan.seed, "selection-halves", 0))

    def start(self) -> Mapping[str, Tensor]:
        """Return the start's whole state dict."""
        return self.setup.start()

    def log(self, message: str) -> None:
        """Say something in the job's log."""
        self.reporter.log("info", message)

    def _first(self, images: int) -> Examples:
        selection = self.setup.data.selection
        assert selection is not None
        if images >= len(selection):
            return selection
        order = permutation(len(selection), self.setup.plan.seed, "selection")[:images].sort().values
        return selection.select(order)


def limits_of(setup: Setup, schedule: Schedule, steps: int | None = None) -> ChoiceLimits:
    """Return what a choice may cost in a job with this schedule. steps: that were taken, where training ended early."""
    images = min(len(setup.data.train), schedule.steps_per_epoch * setup.plan.batch_size)
    trained = images * (schedule.total_steps if steps is None else steps) / schedule.steps_per_epoch
    return ChoiceLimits(
        selection=setup.data.held_out.selection,
        recomputed=min(setup.evaluator.recomputed_images, SELECTION_BATCH_NORM_IMAGES),
        forwards=SHARE * TRAINING * trained,
    )
