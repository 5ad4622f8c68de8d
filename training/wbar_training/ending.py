"""The end of every job: w̄ is evaluated and written, the files beside it are made, and all of it becomes the outcome."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from torch import Tensor

from wbar.choices import AlphaLine, NormalizationProbe, RateProbe, Selection
from wbar.flatness_results import Flatness
from wbar.method import SelectBy, StartKind
from wbar.probe_results import ProbeResult
from wbar.results import (
    Comparisons,
    CurvePoint,
    JobResult,
    MeetingResult,
    OfferedFormat,
    ReplicaResult,
    WeightsFile,
)
from wbar.scores import Score
from wbar_averaging import Epoch
from wbar_training import probe_images
from wbar_training.analysis import attempted, measure_flatness
from wbar_training.answers import draw_answers
from wbar_training.averages.average import Finished
from wbar_training.evaluate import HeldOutOutputs, verdict
from wbar_training.evaluation_sets import evaluated_sets
from wbar_training.evaluator import Scores
from wbar_training.further_formats import make_further_files
from wbar_training.interpolation import interpolated
from wbar_training.outcome import Outcome, ProbeFiles, WeightsFiles
from wbar_training.reporter import Reporter
from wbar_training.result_writer import weights_file
from wbar_training.setup import Setup


@dataclass(frozen=True)
class WrittenMean:
    """w̄, evaluated and written.

    finished: the point of the line that was taken, where the method interpolates.
    line: its points; None: the method does not interpolate.
    outputs, scores: with the weights as the file holds them.
    """

    finished: Finished
    line: AlphaLine | None
    outputs: HeldOutOutputs
    scores: Scores
    files: WeightsFiles


@dataclass(frozen=True)
class Found:
    """The findings of one kind of job, which others may not have: fields of `JobResult` by their names.

    snapshots: the mean score of the snapshots, where it stands in the place of an ensemble's.
    """

    curve: list[CurvePoint]
    normalization: NormalizationProbe | None
    flatness: Flatness | None
    snapshots: Score | None = None
    finished_early: bool = False
    back_offs: int = 0
    start_kind: StartKind | None = None
    rate_probe: RateProbe | None = None
    selection: Selection | None = None
    stock: dict[str, float] | None = None
    replicas: list[ReplicaResult] | None = None
    meetings: list[MeetingResult] | None = None


@dataclass(frozen=True)
class Probed:
    """The comparison of the outputs on the probe images. files: None where another rank writes them."""

    result: ProbeResult
    files: ProbeFiles | None


@dataclass(frozen=True)
class Ending:
    """The end of one job.

    kept: the outputs on the probe images, by comparison; grows.
    start_losses: of the start on the report split, (N,) float64, in nats.
    """

    setup: Setup
    reporter: Reporter
    kept: probe_images.Kept
    start_losses: Tensor

    def write(self, finished: Finished) -> WrittenMean:
        """Take the point of the line from the start that the method asks for, evaluate it, and write it."""
        method, evaluator, line = self.setup.spec.method, self.setup.evaluator, None
        by: SelectBy = getattr(method, "select_by", "loss")
        if method.interpolate is not None:
            finished, line = interpolated(self.setup, self.reporter, method.interpolate, finished, by)
        evaluator.hold(finished.mean, recompute=not finished.own_statistics)
        outputs = evaluator.predict_held_out(evaluator.network)
        scores = evaluator.scores(outputs)
        probe_images.record(self.setup, self.kept, "averaged", evaluator.network)
        # At once: whatever is evaluated next takes the place of w̄ in the evaluator's network.
        tensors, temperature = evaluator.network.state_dict(), scores.report.temperature
        files = self.setup.writer.write_result(tensors, finished.points, temperature)
        return WrittenMean(finished, line, outputs, scores, files)

    def flatness(self, mean: WrittenMean, last: Mapping[str, Tensor], epochs: Sequence[Epoch]) -> Flatness | None:
        """Measure the flatness, where the job asked for it.

        last: the state dict of the last snapshot. epochs: the distances that training recorded.
        """
        if not self.setup.spec.flatness:
            return None
        written = self.setup.read(mean.files.safetensors)
        return attempted(self.reporter, "the flatness", lambda: measure_flatness(self.setup, last, written, epochs))

    def probed(self, mean: WrittenMean, members: float) -> Probed | None:
        """Compare the outputs on the probe images, where the job has them. members: the sum of the ensemble's weights."""
        if self.setup.spec.probe is None:
            return None
        measure = partial(probe_images.conclude, self.setup, self.kept, mean.files.safetensors, members)
        found = attempted(self.reporter, "what the networks make of the probe images", measure)
        return None if found is None else Probed(*found)

    def outcome(
        self,
        mean: WrittenMean,
        compared: Mapping[str, Scores],
        probed: Probed | None,
        found: Found,
        *,
        delivered: WeightsFiles | None = None,
        swag: Path | None = None,
        exact_mean: Path | None = None,
        control: Path | None = None,
    ) -> Outcome:
        """Make the files beside the weights, and return the outcome.

        compared: by field of `Comparisons`, what the job has beside `averaged`.
        delivered: the files of the start, where they are delivered in the place of w̄.
        swag, exact_mean, control: as `Outcome` has them.
        """
        setup, files = self.setup, delivered or mean.files
        further = make_further_files(setup, self.reporter, files.safetensors)
        losses = setup.writer.write_losses(mean.outputs.report.losses, self.start_losses)
        picture = attempted(
            self.reporter, "what a network makes of images", lambda: draw_answers(setup, mean.files.safetensors)
        )
        return Outcome(
            self._result(mean, compared, probed, found, weights_file(files.safetensors), further.offered),
            *files,
            losses,
            averaged=None if delivered is None else mean.files,
            onnx=further.onnx,
            pt2=further.pt2,
            hub=further.hub,
            probe=probed.files if probed else None,
            swag=swag,
            picture=picture,
            exact_mean=exact_mean,
            control=control,
        )

    def _result(
        self,
        mean: WrittenMean,
        compared: Mapping[str, Scores],
        probed: Probed | None,
        found: Found,
        weights: WeightsFile,
        formats: list[OfferedFormat],
    ) -> JobResult:
        compared = {**compared, "averaged": mean.scores}
        metrics = Comparisons(**{name: one.report for name, one in compared.items()}, snapshots=found.snapshots)
        return JobResult(
            weights=weights,
            formats=formats,
            metrics=metrics,
            curve=found.curve,
            verdict=verdict(mean.outputs.report.losses, self.start_losses),
            finished_early=found.finished_early,
            back_offs=found.back_offs,
            start_kind=found.start_kind,
            rate_probe=found.rate_probe,
            held_out=self.setup.data.held_out,
            selection=found.selection,
            evaluation=evaluated_sets(self.setup.data, {name: one.sets for name, one in compared.items()}),
            interpolation=mean.line,
            stock=found.stock,
            replicas=found.replicas,
            meetings=found.meetings,
            normalization=found.normalization,
            flatness=found.flatness,
            probe=probed.result if probed else None,
        )
