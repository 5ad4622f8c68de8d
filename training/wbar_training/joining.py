"""The join of replicas: the exact mean of all their points, BatchNorm recomputed for it, compared with each of them.

    w̄ = Σ_i s_i / Σ_i n_i        the sums s_i in the order of the replicas, whichever ended first

The replicas have taken the training steps, each in a job of its own (`wbar.replicas`). What is left takes minutes at most, and
an interrupted join starts again, to the same bits.
"""

from dataclasses import dataclass
from functools import partial
from pathlib import Path

from wbar.jobs import Progress, StepPhase
from wbar.method import Soup, Training
from wbar.probe_results import ProbeResult
from wbar.replicas import seed_of
from wbar.results import Comparisons, CurvePoint, JobResult, ReplicaResult
from wbar.scores import mean_score
from wbar.spec import JobSpec
from wbar_averaging import RunningMean
from wbar_training import exact_mean, normalization_probe, probe_images
from wbar_training.analysis import attempted, flatness_images, measure_flatness
from wbar_training.answers import draw_answers
from wbar_training.averages.average import Finished, empty_like
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
class EvaluatedReplica:
    """One replica's w̄, BatchNorm recomputed by the joint job's images.

    path: its weights as a file.
    own: the result of its own job.
    """

    n: int
    points: int
    path: Path
    outputs: HeldOutOutputs
    scores: Scores
    own: JobResult


class JoinJob:
    """One run of the job that joins replicas."""

    def __init__(self, spec: JobSpec, workspace: Workspace, reporter: Reporter) -> None:
        assert not isinstance(spec.method, Soup)
        make_deterministic(spec, workspace.device, workspace.threads)
        self.spec, self.workspace, self.reporter = spec, workspace, reporter
        self.method: Training = spec.method
        self._images = 0
        self._probe: probe_images.Kept = {}  # outputs on the probe images, by comparison
        self.setup = set_up(spec, workspace, self._evaluated)
        self.evaluator, self.data = self.setup.evaluator, self.setup.data
        per_point = self.evaluator.recomputed_images + self.data.evaluated_images
        points = 2 + 2 * len(spec.replicas)
        points += len(self.method.interpolate.points()) if self.method.interpolate is not None else 0
        self._total = points * per_point + (flatness_images(self.setup) if spec.flatness else 0)

    def run(self) -> Outcome:
        """Join the replicas. Raises StopRequested when the reporter asks, JobError when the job cannot go on."""
        normalization = None
        if self.spec.find_normalization:
            normalization = normalization_probe.find_normalization(self.setup, self.reporter)
        start = self.evaluator.evaluate_start(self.setup.model)
        probe_images.record(self.setup, self._probe, "start", self.setup.model)
        if self.evaluator.recomputed_images:
            probe_images.record(self.setup, self._probe, "start_recomputed", self.evaluator.probe)
        joint, replicas, curve = self._joined()
        finished, line = Finished(joint, joint.n), None
        if self.method.interpolate is not None:
            finished, line = interpolated(self.setup, self.reporter, self.method.interpolate, finished)
        self.evaluator.where = "of the joint mean"
        self.evaluator.hold(finished.mean)
        outputs = self.evaluator.predict_held_out(self.evaluator.probe)
        averaged = self.evaluator.scores(outputs)
        probe_images.record(self.setup, self._probe, "averaged", self.evaluator.probe)
        files = self.setup.writer.write_result(
            self.evaluator.probe.state_dict(), finished.points, averaged.report.temperature
        )
        flatness = None
        if self.spec.flatness:
            last, written = self.setup.read(replicas[-1].path), self.setup.read(files.safetensors)
            flatness = attempted(self.reporter, "the flatness", lambda: measure_flatness(self.setup, last, written, []))
        compared = {
            "start": start.as_it_came,
            "start_recomputed": start.recomputed,
            "averaged": averaged,
            **self._beside(replicas),
        }
        probed = self._probed(len(replicas), files.safetensors)
        further = make_further_files(self.setup, self.reporter, files.safetensors)
        result = JobResult(
            weights=weights_file(files.safetensors),
            formats=further.offered,
            metrics=Comparisons(**{name: one.report for name, one in compared.items()}),
            evaluation=evaluated_sets(self.data, {name: one.sets for name, one in compared.items()}),
            curve=curve,
            verdict=verdict(outputs.report.losses, start.outputs.report.losses),
            finished_early=any(one.own.finished_early for one in replicas),
            back_offs=sum(one.own.back_offs for one in replicas),
            held_out=self.data.held_out,
            interpolation=line,
            replicas=[self._recorded(one) for one in replicas],
            meetings=replicas[0].own.meetings,  # each of them has measured the same
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

    def _probed(self, members: int, averaged: Path) -> tuple[ProbeResult, ProbeFiles | None] | None:
        """Compare the outputs on the probe images, where the job has them, with those of the ensemble of the replicas."""
        if self.spec.probe is None:
            return None
        measure = partial(probe_images.conclude, self.setup, self._probe, averaged, float(members))
        return attempted(self.reporter, "what the networks make of the probe images", measure)

    def _joined(self) -> tuple[RunningMean, list[EvaluatedReplica], list[CurvePoint]]:
        """Return the joint mean, the replicas by themselves, and the curve: the mean of the first n of them."""
        joint, replicas, curve = empty_like(self.setup.model), list[EvaluatedReplica](), list[CurvePoint]()
        for n in range(1, len(self.spec.replicas) + 1):
            mean = exact_mean.read(self.workspace.replica(n), self.setup.model)
            replicas.append(self._evaluate(n, mean))
            joint.merge(mean)
            self.evaluator.where = f"of the mean of {n} replicas"
            score = self.evaluator.score(self.evaluator.predict_mean(joint))
            self.reporter.averaged(n, score)
            curve.append(CurvePoint.of(n, score))
        return joint, replicas, curve

    def _evaluate(self, n: int, mean: RunningMean) -> EvaluatedReplica:
        self.evaluator.where = f"of replica {n}"
        self.evaluator.hold(mean)
        outputs = self.evaluator.predict_held_out(self.evaluator.probe)
        probe_images.record(self.setup, self._probe, "last", self.evaluator.probe)
        probe_images.add_to_ensemble(self._probe, "last")
        path = self.workspace.replica(n).with_suffix(".averaged.safetensors")
        self.setup.writer.write(path, self.evaluator.probe.state_dict(), mean.n)
        own = JobResult.model_validate_json(self.workspace.replica_result(n).read_bytes())
        return EvaluatedReplica(n, mean.n, path, outputs, self.evaluator.scores(outputs), own)

    def _beside(self, replicas: list[EvaluatedReplica]) -> dict[str, Scores]:
        """Return the comparisons that are made of the replicas, by their names."""
        best = min(replicas, key=lambda one: (one.scores.report.loss, one.n))
        each = [one.scores for one in replicas]
        found = {"last": each[-1], "best_replica": best.scores, "replicas": _mean_of(each, list(self.data.sets))}
        members = [(Member(1.0, partial(self.setup.read, one.path)), one.outputs) for one in replicas]
        ensemble, control = ensemble_scores(self.setup, members), self._control(replicas[0])
        found |= {} if ensemble is None else {"ensemble": ensemble}
        return found | ({} if control is None else {"control": control})

    def _control(self, first: EvaluatedReplica) -> Scores | None:
        """Return the scores of the control, which the first replica trained: its report split is this job's."""
        score = first.own.metrics.control
        if score is None:
            return None
        sets = {name: one.metrics.control for name, one in first.own.evaluation.items()}
        return Scores(score, {name: one for name, one in sets.items() if one is not None})

    def _recorded(self, one: EvaluatedReplica) -> ReplicaResult:
        score = one.scores.report
        seed = seed_of(self.spec.seed, one.n)
        return ReplicaResult(n=one.n, seed=seed, points=one.points, accuracy=score.accuracy, loss=score.loss)

    def _evaluated(self, phase: StepPhase, images: int) -> None:
        self._images += images
        progress = Progress(
            phase=phase, cycle=0, cycles=len(self.spec.replicas), epoch=0, step=0, total_steps=0,
            fraction=min(0.99, self._images / self._total),
        )  # fmt: skip
        reason = self.reporter.heartbeat(progress)
        if reason is not None and reason != "finish":  # there is no training to end
            raise StopRequested(reason)


def _mean_of(each: list[Scores], sets: list[str]) -> Scores:
    on_sets = {name: mean_score([one.sets[name] for one in each]) for name in sets}
    return Scores(mean_score([one.report for one in each]), on_sets)
