"""A soup: the mean of checkpoints that are there already, BatchNorm recomputed for it, compared with the start.

    uniform   w̄ = Σ aᵢwᵢ / Σ aᵢ
    greedy    by rising held-out loss: w enters if the mean's held-out loss does not rise    (Wortsman et al. 2022, recipe 1)
    stock     (1 − t)·w_0 + t·w̄ in each tensor, by the angle between the runs from w_0       (Jang et al. 2024)

Greedy selects on one half of the held-out images, and every reported number is from the other.
"""

from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor

from wbar.choices import Selection
from wbar.method import Soup
from wbar.results import CurvePoint
from wbar.scores import Score, mean_score
from wbar.spec import JobSpec, StoredWeights
from wbar_averaging import ModelStock, RunningMean
from wbar_training import probe_images
from wbar_training.averages.average import Finished
from wbar_training.ending import Found
from wbar_training.ensemble import Member, ensemble_scores
from wbar_training.evaluate import HeldOutOutputs
from wbar_training.evaluator import Scores
from wbar_training.outcome import Outcome
from wbar_training.reporter import Reporter
from wbar_training.untrained import UntrainedJob
from wbar_training.workspace import Workspace


@dataclass(frozen=True)
class Ingredient:
    """One checkpoint by itself, with its own BatchNorm statistics.

    weight: its weight in the mean.
    outputs: on the held-out images.
    selection_loss: on the selection split, where there is one; in nats.
    """

    weights: StoredWeights
    weight: float
    outputs: HeldOutOutputs
    selection_loss: float


@dataclass(frozen=True)
class Mixture:
    """A soup: its mean and its ingredients.

    points: how many weights are averaged in the mean.
    selection: the choice of greedy.
    ratios: of a stock, the share of the mean in each tensor.
    """

    mean: RunningMean
    points: int
    ingredients: list[Ingredient]
    curve: list[CurvePoint]
    selection: Selection | None = None
    ratios: dict[str, float] | None = None


class SoupJob(UntrainedJob):
    """One run of a soup."""

    def __init__(self, spec: JobSpec, workspace: Workspace, reporter: Reporter) -> None:
        assert isinstance(spec.method, Soup)
        super().__init__(spec, workspace, reporter, len(spec.ingredients))
        self.method = spec.method
        held_out = self.data.held_out
        images = self.evaluator.recomputed_images + self.data.evaluated_images
        images += 0 if held_out.selection else held_out.report
        self.expect(2 + 2 * len(spec.ingredients), images, self.method.interpolate)

    def run(self) -> Outcome:
        """Do the job. Raises StopRequested when the reporter asks, JobError when it cannot go on."""
        start = self.evaluate_start()
        weights = self.method.weights or [1.0] * len(self.spec.ingredients)
        ingredients = [self._evaluate(*pair) for pair in zip(self.spec.ingredients, weights, strict=True)]
        mix = {"greedy": self._greedy, "stock": self._stock, "uniform": self._uniform}[self.method.average]
        mixture, ending = mix(ingredients), self.ending(start)
        members, last = mixture.ingredients, mixture.ingredients[-1]
        mean = ending.write(Finished(mixture.mean, mixture.points, mixture.selection))
        ensemble = self._ensemble(members)
        self._probe_members(members)
        compared = {
            "start": start.as_it_came,
            "start_recomputed": start.recomputed,
            "last": self.evaluator.scores(last.outputs),
            **({} if ensemble is None else {"ensemble": ensemble}),
        }
        found = Found(
            curve=mixture.curve,
            normalization=self.normalization,
            flatness=ending.flatness(mean, self._tensors(last.weights), []),
            snapshots=None if ensemble else self._mean_of(members),
            selection=_selection(mean.finished.selection, mean.outputs),
            stock=mixture.ratios,
        )
        return ending.outcome(mean, compared, ending.probed(mean, sum(one.weight for one in members)), found)

    def _probe_members(self, members: list[Ingredient]) -> None:
        """Keep what the members make of the probe images, and the sum of it."""
        if self.spec.probe is None:
            return
        for one in members:
            self.evaluator.network.load_state_dict(self._tensors(one.weights))
            self.keep_probe_answers("last", self.evaluator.network)
            probe_images.add_to_ensemble(self.kept, "last", one.weight)

    def _uniform(self, ingredients: list[Ingredient]) -> Mixture:
        mean, curve = self._empty(), []
        for n, one in enumerate(ingredients, start=1):
            mean.update(self._tensors(one.weights), one.weight)
            curve.append(self._point(n, self.evaluator.score(self.evaluator.predict_mean(mean))))
        return Mixture(mean, mean.n, ingredients, curve)

    def _stock(self, ingredients: list[Ingredient]) -> Mixture:
        stock = ModelStock(self.setup.start())
        for one in ingredients:
            stock.update(self._tensors(one.weights))
        mean, ratios = self._empty(), stock.ratios()
        mean.update(stock.weights())
        self.reporter.log(
            "info",
            f"model stock of {stock.n} runs: the share of their mean is from {min(ratios.values()):.3f} to "
            f"{max(ratios.values()):.3f}, by tensor; the rest is the start's",
        )
        curve = [self._point(stock.n, self.evaluator.score(self.evaluator.predict_mean(mean)))]
        return Mixture(mean, stock.n, ingredients, curve, ratios=ratios)

    def _greedy(self, ingredients: list[Ingredient]) -> Mixture:
        mean, kept, curve, best = self._empty(), list[Ingredient](), list[CurvePoint](), float("inf")
        for one in sorted(ingredients, key=lambda one: one.selection_loss):
            candidate = self._empty()
            candidate.merge(mean)
            candidate.update(self._tensors(one.weights))
            loss = self.evaluator.predict_mean(candidate, self.data.selection).losses.mean().item()
            if loss > best:
                self.reporter.log("info", f"{one.weights.id} stays out: the loss would be {loss:.5f}, not {best:.5f}")
                continue
            mean, best = candidate, loss
            kept.append(one)
            curve.append(self._point(mean.n, self.evaluator.score(self.evaluator.predict_mean(mean))))
        ids = [one.weights.id for one in kept]
        selection = Selection(delivered="averaged", kept=ids, of=len(ingredients), loss=best)
        return Mixture(mean, mean.n, kept, curve, selection)

    def _evaluate(self, weights: StoredWeights, weight: float) -> Ingredient:
        self.evaluator.where = f"of {weights.id}"
        self.evaluator.network.load_state_dict(self._tensors(weights))
        outputs = self.evaluator.predict_held_out(self.evaluator.network)
        self.evaluator.where = "of the mean"
        return Ingredient(weights, weight, outputs, (outputs.selection or outputs.report).losses.mean().item())

    def _mean_of(self, ingredients: list[Ingredient]) -> Score:
        return mean_score([self.evaluator.score(one.outputs.report) for one in ingredients])

    def _ensemble(self, ingredients: list[Ingredient]) -> Scores | None:
        members = [(Member(one.weight, partial(self._tensors, one.weights)), one.outputs) for one in ingredients]
        return ensemble_scores(self.setup, members)

    def _empty(self) -> RunningMean:
        return RunningMean(self.setup.model, dtype=torch.float64)

    def _tensors(self, weights: StoredWeights) -> dict[str, Tensor]:
        return self.setup.read(self.workspace.input(weights.blob), weights.prefix)

    def _point(self, n: int, score_of_mean: Score) -> CurvePoint:
        self.keep_probe_answers(f"{probe_images.CURVE}{n}", self.evaluator.network)  # it holds the mean
        self.reporter.averaged(n, score_of_mean)
        return CurvePoint.of(n, score_of_mean)


def _selection(made: Selection | None, outputs: HeldOutOutputs) -> Selection | None:
    """Return the selection with the loss of what is delivered. made: by greedy."""
    if outputs.selection is None:
        return made
    selection = made or Selection(delivered="averaged")
    loss = outputs.selection.losses.mean().item() if selection.loss is None else selection.loss
    return selection.model_copy(update={"loss": loss})
