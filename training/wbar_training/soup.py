"""A soup: the mean of checkpoints that are there already, BatchNorm recomputed for it, compared with the start.

    uniform   w̄ = Σ aᵢwᵢ / Σ aᵢ
    greedy    by rising held-out loss: w enters if the mean's held-out loss does not rise    (Wortsman et al. 2022, recipe 1)
    stock     (1 − t)·w_0 + t·w̄ in each tensor, by the angle between the runs from w_0       (Jang et al. 2024)

Greedy selects on one half of the held-out images, and every reported number is from the other. There is nothing to resume:
an interrupted soup starts again, to the same bits.
"""

from dataclasses import dataclass
from functools import partial
from pathlib import Path

import torch
from torch import Tensor, nn

from wbar.choices import Selection
from wbar.jobs import Progress, StepPhase
from wbar.method import Soup
from wbar.probe_results import ProbeResult
from wbar.results import Comparisons, CurvePoint, JobResult
from wbar.scores import Score, mean_score
from wbar.spec import JobSpec, StoredWeights
from wbar_averaging import ModelStock, RunningMean
from wbar_training import normalization_probe, probe_images
from wbar_training.analysis import attempted, flatness_images, measure_flatness
from wbar_training.answers import draw_answers
from wbar_training.averages.average import Finished
from wbar_training.ensemble import Member, ensemble_scores
from wbar_training.evaluate import HeldOutOutputs, verdict
from wbar_training.evaluation_sets import evaluated_sets
from wbar_training.evaluator import Scores
from wbar_training.further_formats import make_further_files
from wbar_training.interpolation import interpolated
from wbar_training.outcome import Outcome, ProbeFiles
from wbar_training.reporter import Reporter, StopRequested
from wbar_training.result_writer import weights_file
from wbar_training.setup import make_deterministic, set_up
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


class SoupJob:
    """One run of a soup."""

    def __init__(self, spec: JobSpec, workspace: Workspace, reporter: Reporter) -> None:
        assert isinstance(spec.method, Soup)
        make_deterministic(spec, workspace.device, workspace.threads)
        self.spec, self.workspace, self.reporter, self.method = spec, workspace, reporter, spec.method
        self._images = 0
        self._probe: dict[str, Tensor] = {}  # outputs on the probe images, by comparison
        self.setup = set_up(spec, workspace, self._evaluated)
        self.evaluator, self.data = self.setup.evaluator, self.setup.data
        recompute, held_out = self.evaluator.recomputed_images, self.data.held_out
        per_point = recompute + self.data.evaluated_images + (0 if held_out.selection else held_out.report)
        self._total = (2 + 2 * len(spec.ingredients)) * per_point + recompute
        line = self.method.interpolate
        self._total += len(line.points()) * per_point if line is not None else 0
        self._total += flatness_images(self.setup) if spec.flatness else 0

    def run(self) -> Outcome:
        """Do the job. Raises StopRequested when the reporter asks, JobError when it cannot go on."""
        normalization = None
        if self.spec.find_normalization:
            normalization = normalization_probe.find_normalization(self.setup, self.reporter)
        start = self.evaluator.evaluate_start(self.setup.model)
        self._keep_probe_answers("start", self.setup.model)
        if self.evaluator.recomputed_images:
            self._keep_probe_answers("start_recomputed", self.evaluator.probe)
        warning = normalization_probe.near_chance(self.setup, start.as_it_came.report)
        if warning is not None:
            self.reporter.log("warning", warning)
        weights = self.method.weights or [1.0] * len(self.spec.ingredients)
        ingredients = [self._evaluate(*pair) for pair in zip(self.spec.ingredients, weights, strict=True)]
        mix = {"greedy": self._greedy, "stock": self._stock, "uniform": self._uniform}[self.method.average]
        mixture = mix(ingredients)
        finished, line = Finished(mixture.mean, mixture.points, mixture.selection), None
        if self.method.interpolate is not None:
            finished, line = interpolated(self.setup, self.reporter, self.method.interpolate, finished)
        self.evaluator.hold(finished.mean)
        outputs = self.evaluator.predict_held_out(self.evaluator.probe)
        self._keep_probe_answers("averaged", self.evaluator.probe)
        averaged, ensemble = self.evaluator.scores(outputs), self._ensemble(mixture.ingredients)
        last = self.evaluator.scores(mixture.ingredients[-1].outputs)
        weights_of_mean = self.evaluator.probe.state_dict()
        files = self.setup.writer.write_result(weights_of_mean, finished.points, averaged.report.temperature)
        probed = self._probed(mixture.ingredients, files.safetensors)
        flatness = None
        if self.spec.flatness:
            newest, written = self._tensors(mixture.ingredients[-1].weights), self.setup.read(files.safetensors)
            flatness = attempted(
                self.reporter, "the flatness", lambda: measure_flatness(self.setup, newest, written, [])
            )
        further = make_further_files(self.setup, self.reporter, files.safetensors)
        result = JobResult(
            weights=weights_file(files.safetensors),
            formats=further.offered,
            metrics=Comparisons(
                start=start.as_it_came.report,
                start_recomputed=start.recomputed.report,
                last=last.report,
                averaged=averaged.report,
                ensemble=ensemble and ensemble.report,
                snapshots=None if ensemble else self._mean_of(mixture.ingredients),
            ),
            evaluation=evaluated_sets(
                self.data,
                {
                    "start": start.as_it_came.sets,
                    "start_recomputed": start.recomputed.sets,
                    "last": last.sets,
                    "averaged": averaged.sets,
                    **({"ensemble": ensemble.sets} if ensemble else {}),
                },
            ),
            curve=mixture.curve,
            verdict=verdict(outputs.report.losses, start.outputs.report.losses),
            held_out=self.data.held_out,
            selection=_selection(finished.selection, outputs),
            interpolation=line,
            stock=mixture.ratios,
            normalization=normalization,
            flatness=flatness,
            probe=probed and probed[0],
        )
        losses = self.setup.writer.write_losses(outputs.report.losses, start.outputs.report.losses)
        picture = draw_answers(self.setup, files.safetensors)
        return Outcome(
            result, *files, losses, onnx=further.onnx, pt2=further.pt2, hub=further.hub, probe=probed and probed[1],
            picture=picture,
        )  # fmt: skip

    def _keep_probe_answers(self, name: str, model: nn.Module) -> None:
        probe_images.record(self.setup, self._probe, name, model)

    def _probed(self, ingredients: list[Ingredient], averaged: Path) -> tuple[ProbeResult, ProbeFiles | None] | None:
        """Compare the outputs on the probe images, where the job has them, with those of the ensemble of the members."""
        if self.spec.probe is None:
            return None
        for one in ingredients:
            self.evaluator.probe.load_state_dict(self._tensors(one.weights))
            self._keep_probe_answers("last", self.evaluator.probe)
            probe_images.add_to_ensemble(self._probe, "last", one.weight)
        members = sum(one.weight for one in ingredients)
        measure = partial(probe_images.conclude, self.setup, self._probe, averaged, members)
        return attempted(self.reporter, "what the networks make of the probe images", measure)

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
        self.evaluator.probe.load_state_dict(self._tensors(weights))
        outputs = self.evaluator.predict_held_out(self.evaluator.probe)
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
        self._keep_probe_answers(f"{probe_images.CURVE}{n}", self.evaluator.probe)  # it holds the mean
        self.reporter.averaged(n, score_of_mean)
        return CurvePoint.of(n, score_of_mean)

    def _evaluated(self, phase: StepPhase, images: int) -> None:
        self._images += images
        progress = Progress(
            phase=phase, cycle=0, cycles=len(self.spec.ingredients), epoch=0, step=0, total_steps=0,
            fraction=min(0.99, self._images / self._total),
        )  # fmt: skip
        reason = self.reporter.heartbeat(progress)
        if reason is not None and reason != "finish":  # there is no training to end
            raise StopRequested(reason)


def _selection(made: Selection | None, outputs: HeldOutOutputs) -> Selection | None:
    """Return the selection with the loss of what is delivered. made: by greedy."""
    if outputs.selection is None:
        return made
    selection = made or Selection(delivered="averaged")
    loss = outputs.selection.losses.mean().item() if selection.loss is None else selection.loss
    return selection.model_copy(update={"loss": loss})
