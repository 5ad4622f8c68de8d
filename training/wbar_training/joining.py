"""The join of replicas: the exact mean of all their points, BatchNorm recomputed for it, compared with each of them.

    w̄ = Σ_i s_i / Σ_i n_i        the sums s_i in the order of the replicas, whichever ended first

The replicas have taken the training steps, each in a job of its own (`wbar.replicas`). What is left takes minutes at most.
"""

from dataclasses import dataclass
from functools import partial
from pathlib import Path

from wbar.method import Soup
from wbar.replicas import seed_of
from wbar.results import CurvePoint, JobResult, ReplicaResult
from wbar.scores import mean_score
from wbar.spec import JobSpec
from wbar_averaging import RunningMean
from wbar_training import exact_mean, probe_images
from wbar_training.averages.average import Finished, empty_like
from wbar_training.ending import Found
from wbar_training.ensemble import Member, ensemble_scores
from wbar_training.evaluate import HeldOutOutputs
from wbar_training.evaluator import Scores
from wbar_training.outcome import Outcome
from wbar_training.reporter import Reporter
from wbar_training.untrained import UntrainedJob
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


class JoinJob(UntrainedJob):
    """One run of the job that joins replicas."""

    def __init__(self, spec: JobSpec, workspace: Workspace, reporter: Reporter) -> None:
        assert not isinstance(spec.method, Soup)
        super().__init__(spec, workspace, reporter, len(spec.replicas))
        images = self.evaluator.recomputed_images + self.data.evaluated_images
        self.expect(2 + 2 * len(spec.replicas), images, spec.method.interpolate)

    def run(self) -> Outcome:
        """Join the replicas. Raises StopRequested when the reporter asks, JobError when the job cannot go on."""
        start = self.evaluate_start()
        joint, replicas, curve = self._joined()
        self.evaluator.where, ending = "of the joint mean", self.ending(start)
        mean = ending.write(Finished(joint, joint.n))
        flatness = ending.flatness(mean, self.setup.read(replicas[-1].path), [])
        compared = {"start": start.as_it_came, "start_recomputed": start.recomputed, **self._beside(replicas)}
        found = Found(
            curve=curve,
            normalization=self.normalization,
            flatness=flatness,
            finished_early=any(one.own.finished_early for one in replicas),
            back_offs=sum(one.own.back_offs for one in replicas),
            replicas=[self._recorded(one) for one in replicas],
            meetings=replicas[0].own.meetings,  # each of them has measured the same
        )
        return ending.outcome(mean, compared, ending.probed(mean, len(replicas)), found)

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
        outputs = self.evaluator.predict_held_out(self.evaluator.network)
        self.keep_probe_answers("last", self.evaluator.network)
        probe_images.add_to_ensemble(self.kept, "last")
        path = self.workspace.replica(n).with_suffix(".averaged.safetensors")
        self.setup.writer.write(path, self.evaluator.network.state_dict(), mean.n)
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


def _mean_of(each: list[Scores], sets: list[str]) -> Scores:
    on_sets = {name: mean_score([one.sets[name] for one in each]) for name in sets}
    return Scores(mean_score([one.report for one in each]), on_sets)
