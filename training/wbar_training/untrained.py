"""What soups and joins have in common: jobs that take no training steps, which evaluate networks that are there already.

There is nothing to resume: an interrupted one starts again, to the same bits.
"""

from torch import nn

from wbar.choices import NormalizationProbe
from wbar.jobs import Progress, StepPhase
from wbar.method import Interpolate
from wbar.spec import JobSpec
from wbar_training import normalization_probe, probe_images
from wbar_training.analysis import flatness_images
from wbar_training.ending import Ending
from wbar_training.evaluator import StartEvaluation
from wbar_training.outcome import Outcome
from wbar_training.reporter import Reporter, StopRequested
from wbar_training.setup import make_deterministic, set_up
from wbar_training.workspace import Workspace


class UntrainedJob:
    """One run of such a job. inputs: how many networks it begins with."""

    def __init__(self, spec: JobSpec, workspace: Workspace, reporter: Reporter, inputs: int) -> None:
        make_deterministic(spec, workspace.device, workspace.threads)
        self.spec, self.workspace, self.reporter = spec, workspace, reporter
        self.setup = set_up(spec, workspace, self._evaluated)
        self.evaluator, self.data = self.setup.evaluator, self.setup.data
        self.kept: probe_images.Kept = {}  # outputs on the probe images, by comparison
        self.normalization: NormalizationProbe | None = None
        self._inputs, self._images, self._total = inputs, 0, 1

    def run(self) -> Outcome:
        """Do the job. Raises StopRequested when the reporter asks, JobError when it cannot go on."""
        raise NotImplementedError

    def expect(self, networks: int, images: int, line: Interpolate | None) -> None:
        """Plan the progress: so many evaluations of `images` each, the points of `line`, and the flatness."""
        points = networks + (len(line.points()) if line is not None else 0)
        self._total = points * images + (flatness_images(self.setup) if self.spec.flatness else 0)

    def evaluate_start(self) -> StartEvaluation:
        """Evaluate the start as it came and recomputed, with the normalization that it was found to be trained with."""
        if self.spec.find_normalization:
            self.normalization = normalization_probe.find_normalization(self.setup, self.reporter)
        start = self.evaluator.evaluate_start(self.setup.model)
        self.keep_probe_answers("start", self.setup.model)
        if self.evaluator.recomputed_images:
            self.keep_probe_answers("start_recomputed", self.evaluator.network)
        warning = normalization_probe.near_chance(self.setup, start.as_it_came.report)
        if warning is not None:
            self.reporter.log("warning", warning)
        return start

    def ending(self, start: StartEvaluation) -> Ending:
        """Return the end of this job."""
        return Ending(self.setup, self.reporter, self.kept, start.outputs.report.losses)

    def keep_probe_answers(self, name: str, model: nn.Module) -> None:
        """Keep what a network makes of the probe images, where the job has them."""
        probe_images.record(self.setup, self.kept, name, model)

    def _evaluated(self, phase: StepPhase, images: int) -> None:
        self._images += images
        progress = Progress(
            phase=phase, cycle=0, cycles=self._inputs, epoch=0, step=0, total_steps=0,
            fraction=min(0.99, self._images / self._total),
            normalize=self.normalization and self.normalization.normalization,
        )  # fmt: skip
        reason = self.reporter.heartbeat(progress)
        if reason is not None and reason != "finish":  # there is no training to end
            raise StopRequested(reason)
