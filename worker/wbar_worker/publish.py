"""An attempt's messages are written to the store: metrics, snapshots and states as they come, the result at the end.

Every write carries the claim, and changes nothing once another attempt or a cancel has moved the job on.
"""

import logging
from contextlib import ExitStack
from importlib.metadata import version
from pathlib import Path

from wbar.card import ModelCard
from wbar.jobs import MetricsPoint, Progress
from wbar.results import JobResult
from wbar.scores import Score
from wbar.transfers import sha256_of
from wbar_store.attempts import ResultBlobs
from wbar_store.blobs import Received
from wbar_store.job_records import FileName, JobRecord
from wbar_store.store import Store
from wbar_training.messages import LogLevel, Succeeded
from wbar_training.outcome import Outcome
from wbar_worker.heartbeat import Heartbeat
from wbar_worker.hub_folder import offered_folder
from wbar_worker.report import ReportPage
from wbar_worker.signing import SIGNED_NAMES, CannotSign, sign

log = logging.getLogger("wbar.worker")


class Publisher:
    """Takes what a `wbar_training.reporter.Reporter` is told, for one claimed job: `deliver` hands it the attempt's messages.

    Its heartbeat answers nothing: a reason to stop comes by another way.

    signing_key: the operator's, where results are signed.
    """

    def __init__(self, store: Store, job: JobRecord, heartbeat: Heartbeat, signing_key: Path | None = None) -> None:
        self._store, self._job, self._claim, self._heartbeat = store, job, job.claim, heartbeat
        self._signing_key = signing_key

    def heartbeat(self, progress: Progress) -> None:
        """Hand the progress to the heartbeat, whose own thread stores it and answers."""
        self._heartbeat.took(progress)

    def metrics(self, points: list[MetricsPoint]) -> None:
        self._store.metrics.add(self._claim, points)

    def averaged(self, n: int, score: Score) -> None:
        self._store.attempts.averaged(self._claim, n, score)

    def log(self, level: LogLevel, message: str) -> None:
        self._store.attempts.log(self._claim, level, message)

    def snapshot(self, n: int, step: int, path: str, score: Score) -> None:
        before = self._store.snapshots.recorded(self._claim).get(n)
        meetings = self._job.spec.meetings
        if before is not None and meetings is not None and meetings.after(n):
            # Others may have gone on from it: it stays as it is, wherever it is taken again.
            self._store.snapshots.taken_again(self._claim, n, step)
            return
        if before == sha256_of(Path(path)):
            return  # announced again by a resumed attempt
        received = self._store.blobs.put_file(Path(path))
        with self._store.blobs.keep(received):
            self._store.snapshots.add(self._claim, n, step, score, received)

    def saved(self, path: str, step: int, durable: bool) -> None:
        if not durable:
            self._store.attempts.got_further(self._claim, step)
            return
        if not Path(path).exists():
            return  # a later state has replaced it already; its own message follows
        received = self._store.blobs.put_file(Path(path))
        with self._store.blobs.keep(received):
            replaced = self._store.attempts.save_state(self._claim, received.sha256, step)
        if replaced:
            self._store.blobs.collect([replaced])

    def succeed(self, ending: Succeeded) -> None:
        """Store the weights and the report, and end the job."""
        blobs, reported = self._store.blobs, self._heartbeat.progress
        progress = reported.model_copy(update={"fraction": 1.0, "eta_seconds": 0.0}) if reported else None
        with ExitStack() as held:
            # Each is held as soon as it is there: where a later one fails, nothing is left of those before it.
            def kept(path: Path) -> str:
                return held.enter_context(blobs.keep(blobs.put_file(path)))

            outcome = ending.outcome
            result, others = self._others(outcome)
            weights, pytorch = kept(outcome.weights), kept(outcome.pytorch)
            drawn = self._report(outcome, outcome.weights.with_name("report.html"))
            files = ResultBlobs(
                weights,
                pytorch,
                report=held.enter_context(blobs.keep(drawn)) if drawn else None,
                losses=kept(outcome.losses) if outcome.losses else None,
                averaged=kept(outcome.averaged.safetensors) if outcome.averaged else None,
                averaged_pytorch=kept(outcome.averaged.pytorch) if outcome.averaged else None,
                files={name: kept(path) for name, path in others.items()},
            )
            self._store.attempts.succeed(self._claim, result, files, progress)
        self.forget_state()

    def _others(self, outcome: Outcome) -> tuple[JobResult, dict[FileName, Path]]:
        """Return the result, and its further files: those that the job asked for, its card, and the signature of all."""
        weights, result = outcome.weights, outcome.result
        others: dict[FileName, Path] = {"card": weights.with_name("README.md")}
        card = self._card(result)
        if outcome.onnx is not None:
            others["onnx"] = outcome.onnx
        if outcome.pt2 is not None:
            others["pt2"] = outcome.pt2
        if outcome.probe is not None:
            others["probe"] = outcome.probe.outputs
        if outcome.swag is not None:
            others["swag"] = outcome.swag
        if outcome.control is not None:
            others["control"] = outcome.control
        if outcome.hub is not None:
            folder = weights.with_name("huggingface.zip")
            offered = offered_folder(folder, outcome.hub, weights, card)
            result = result.model_copy(update={"formats": [*result.formats, offered]})
            if offered.reason is None:
                others["huggingface"] = folder
            else:  # a folder of weights that are there
                self.log("warning", f"there is no huggingface file: {offered.reason}")
                card = self._card(result)
        others["card"].write_text(card, encoding="utf-8")
        if self._signing_key is not None:
            signature = weights.with_name("signature.json")
            files: dict[str, Path] = {"safetensors": weights, "pytorch": outcome.pytorch}
            files |= {str(name): path for name, path in others.items() if name in SIGNED_NAMES}
            try:
                sign(files, self._signing_key, signature)
            except CannotSign as error:
                log.error("%s: %s", self._job.id, error)
                self.log("error", "the result is not signed: the operator's key cannot be used")
            else:
                others["signature"] = signature
        if outcome.exact_mean is not None:
            others["mean"] = outcome.exact_mean
        return result, others

    def _card(self, result: JobResult) -> str:
        versions = {name: version(name) for name in ("wbar", "torch")}
        return ModelCard(self._job.id, self._job.name, self._job.spec, result, versions).markdown()

    def _report(self, outcome: Outcome, path: Path) -> Received | None:
        """Draw and store the report; None, and an entry in the job's log, where that fails: the weights are there already."""
        job = self._job
        try:
            points = self._store.metrics.all(job.owner, job.id)
            thumbnails = outcome.probe and outcome.probe.thumbnails
            ReportPage(
                job.id, job.name, job.spec, outcome.result, points, job.request, outcome.picture, thumbnails
            ).write(path)
        except Exception as error:
            log.exception("%s: the report could not be drawn", job.id)
            self.log(
                "error", f"the report could not be drawn ({type(error).__name__}); weights and numbers are complete"
            )
            return None
        return self._store.blobs.put_file(path)

    def forget_state(self) -> None:
        """Drop the resumable state of a job that has ended."""
        released = self._store.jobs.drop_state(self._job.id)
        if released:
            self._store.blobs.collect([released])
