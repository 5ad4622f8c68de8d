"""A soup: the mean of checkpoints that are there already, BatchNorm recomputed for it, compared with the start.

    uniform   w̄ = Σ aᵢwᵢ / Σ aᵢ
    greedy    by rising held-out loss: w enters if the mean's held-out loss does not rise    (Wortsman et al. 2022, recipe 1)

Greedy looks at held-out images to choose, so it chooses on one half of them and every reported number is from the other.
There is nothing to resume: an interrupted soup starts again, to the same bits.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from wbar.jobs import Arms, CurvePoint, Progress, Score, StepPhase
from wbar.method import Soup
from wbar_averaging import RunningMean
from wbar_training.analysis import attempted, flatness_images, measure_flatness
from wbar_training.data.packed import Split
from wbar_training.evaluate import Outputs, score, verdict
from wbar_training.meter import Reporter, Stopped
from wbar_training.plan import Ingredient, Outcome, Work
from wbar_training.setting import Setting, make_deterministic


@dataclass
class _Found:
    """One ingredient on the held-out images: `choose` is the loss it is judged by."""

    ingredient: Ingredient
    weight: float
    report: Outputs
    choose: float


class Pot:
    """The pieces of one soup, and the few methods that stir it."""

    def __init__(self, work: Work, reporter: Reporter) -> None:
        method = work.chosen_method()
        assert isinstance(method, Soup)
        make_deterministic(work, work.threads)
        self.work, self.reporter, self.method = work, reporter, method
        self._images = 0
        self.setting = Setting(work, self._tick)
        self.report, self.choose = self.setting.val, self.setting.choose or self.setting.val
        recompute = self.setting.recomputed_images
        per_point = recompute + len(self.report) + len(self.choose)
        self._total = (2 + 2 * len(work.ingredients)) * per_point + recompute
        self._total += flatness_images(self.setting) if work.flatness else 0

    def cook(self) -> Outcome:
        """Do the work. Raises Stopped when the reporter asks, JobError when it cannot go on."""
        start, recomputed, start_losses = self.setting.start_scores(self.report)
        warning = self.setting.near_chance(start)
        if warning is not None:
            self.reporter.log("warning", warning)
        weights = self.method.weights or [1.0] * len(self.work.ingredients)
        found = [self._taste(*pair) for pair in zip(self.work.ingredients, weights, strict=True)]
        mean, chosen, curve = self._greedy(found) if self.method.average == "greedy" else self._uniform(found)
        averaged = self._predict_mean(mean, self.report)
        path, pytorch = self.setting.write_result(mean, len(chosen))
        ensemble = sum((one.report.probabilities.double() for one in chosen), torch.zeros(())) / len(chosen)
        metrics = Arms(
            start=start,
            start_recomputed=recomputed,
            last=self.setting.score(chosen[-1].report, self.report),
            averaged=self.setting.score(averaged, self.report),
            ensemble=score(ensemble, self.report.labels),
        )
        flatness = None
        if self.work.flatness:
            last, averaged_weights = self._tensors(chosen[-1].ingredient), self.setting.read(path, self.work.prefix)
            flatness = attempted(
                self.reporter, "the flatness", lambda: measure_flatness(self.setting, last, averaged_weights, [])
            )
        names = [one.ingredient.id for one in chosen]
        return Outcome(
            path,
            pytorch,
            metrics,
            curve,
            verdict(averaged.losses, start_losses),
            self.setting.held_out,
            flatness,
            names,
        )

    def _uniform(self, found: list[_Found]) -> tuple[RunningMean, list[_Found], list[CurvePoint]]:
        mean, curve = self._empty(), []
        for n, one in enumerate(found, start=1):
            mean.update(self._tensors(one.ingredient), one.weight)
            curve.append(self._point(n, self.setting.score(self._predict_mean(mean, self.report), self.report)))
        return mean, found, curve

    def _greedy(self, found: list[_Found]) -> tuple[RunningMean, list[_Found], list[CurvePoint]]:
        mean, chosen, curve, best = self._empty(), list[_Found](), list[CurvePoint](), float("inf")
        for one in sorted(found, key=lambda one: one.choose):
            candidate = self._empty()
            candidate.merge(mean)
            candidate.update(self._tensors(one.ingredient))
            loss = self._predict_mean(candidate, self.choose).losses.mean().item()
            if loss > best:
                self.reporter.log(
                    "info", f"{one.ingredient.id} stays out: the loss would be {loss:.5f}, not {best:.5f}"
                )
                continue
            mean, best = candidate, loss
            chosen.append(one)
            curve.append(self._point(mean.n, self.setting.score(self._predict_mean(mean, self.report), self.report)))
        return mean, chosen, curve

    def _empty(self) -> RunningMean:
        return RunningMean(self.setting.model, dtype=torch.float64)

    def _taste(self, ingredient: Ingredient, weight: float) -> _Found:
        """One ingredient by itself, with its own BatchNorm statistics."""
        self.setting.where = f"of {ingredient.id}"
        self.setting.probe.load_state_dict(self._tensors(ingredient))
        report = self.setting.predict(self.setting.probe, self.report)
        choose = self.setting.predict(self.setting.probe, self.choose) if self.method.average == "greedy" else report
        self.setting.where = "of the mean"
        return _Found(ingredient, weight, report, choose.losses.mean().item())

    def _tensors(self, ingredient: Ingredient) -> dict[str, Tensor]:
        return self.setting.read(ingredient.path, ingredient.prefix)

    def _predict_mean(self, mean: RunningMean, split: Split) -> Outputs:
        mean.copy_to(self.setting.probe)
        self.setting.settle(self.setting.probe)
        return self.setting.predict(self.setting.probe, split)

    def _point(self, n: int, found: Score) -> CurvePoint:
        self.reporter.averaged(n, found)
        return CurvePoint(n=n, accuracy=found.accuracy, loss=found.loss)

    def _tick(self, phase: StepPhase, images: int) -> None:
        self._images += images
        count = len(self.work.ingredients)
        progress = Progress(
            phase=phase, cycle=0, cycles=count, epoch=0, step=0, total_steps=0,
            fraction=min(0.99, self._images / self._total),
        )  # fmt: skip
        reason = self.reporter.heartbeat(progress)
        if reason is not None:
            raise Stopped(reason)
