"""One job, top to bottom: train along the schedule, average the visited weights, compare with everything else.

    for every step of the schedule:                        (wbar.schedule: rates, phases, snapshot steps, visits, pull)
        w ← optimizer step on  L(w) + λ‖w̄ − w‖²          (step)
        where the schedule visits:  w̄ takes w in           (averages; in cyclic_swa at the end of a cycle,
                                                             w̄ ← w̄ + (w_n − w̄)/n)
        where a snapshot is due:    w_n is kept and evaluated; BatchNorm statistics of w̄ recomputed, and w̄ evaluated:
                                    a point of the curve   (evaluator)
    the last w̄, or the mean that the method selects, is the result, compared with everything else   (comparisons)

Every number is a function of the inputs and the step, so a job that is interrupted anywhere and goes on from its last
saved state ends in the same bits.
"""

import time
from collections.abc import Iterable
from dataclasses import replace

import torch

from wbar.errors import Diverged
from wbar.jobs import StepPhase
from wbar.measures import MEASURES
from wbar.method import CyclicSwa, Plain, Soup, Training
from wbar.schedule import BACK_OFF
from wbar.spec import JobSpec
from wbar_averaging import Position, Trajectory
from wbar_training import (
    decisions,
    meeting,
    normalization_probe,
    probe_images,
    resume,
    safe_path,
    starting,
    state_files,
)
from wbar_training.averages.average import Mean, mean_of
from wbar_training.comparisons import TrainedControl, add_to_ensemble, conclude
from wbar_training.course import Course
from wbar_training.distributed.launch import run_on_ranks
from wbar_training.distributed.ranks import HEARTBEAT_STEPS, Ranks
from wbar_training.evaluator import Scores
from wbar_training.failures import as_job_errors
from wbar_training.head_probe import probe_head
from wbar_training.job_data import JobData
from wbar_training.joining import JoinJob
from wbar_training.meter import Meter
from wbar_training.networks.programs import learn_all
from wbar_training.networks.teachers import Teachers
from wbar_training.outcome import Outcome
from wbar_training.progress import ControlReporter, Cost, ProgressEstimate
from wbar_training.reporter import Reporter, StopRequested
from wbar_training.selection_evaluator import SelectionEvaluator, limits_of
from wbar_training.setup import make_deterministic, set_up
from wbar_training.soup import SoupJob
from wbar_training.step import Stepper, StepResult
from wbar_training.workspace import Workspace

# How often the host waits for the device, to report the progress (it changes no result).
HEARTBEAT_SECONDS = 0.4


@safe_path.for_children()
def run(spec: JobSpec, workspace: Workspace, reporter: Reporter) -> Outcome:
    """Do the job, or its remaining part, and return the weights and the comparison.

    Raises StopRequested when the reporter asks for it, JobError when the job cannot go on.
    """
    learn_all(spec, workspace)
    with as_job_errors():
        if isinstance(spec.method, Soup):
            return SoupJob(spec, workspace, reporter).run()
        if spec.replicas:
            return JoinJob(spec, workspace, reporter).run()
        if spec.recipe.devices > 1 and Ranks.here().size == 1:
            return run_on_ranks(spec, workspace, reporter, "wbar_training.loop:run")
        return TrainingJob(spec, workspace, reporter).run()


class TrainingJob:
    """One run of a job that trains. data: the images of another run of the same job, which serve this one too."""

    def __init__(self, spec: JobSpec, workspace: Workspace, reporter: Reporter, data: JobData | None = None) -> None:
        assert not isinstance(spec.method, Soup)
        self.spec, self.workspace, self.reporter = spec, workspace, reporter
        self.method: Training = spec.method
        self.ranks = Ranks.here()
        state = self._load_state()
        threads = max(1, workspace.threads // self.ranks.size) if workspace.threads else None
        make_deterministic(spec, workspace.device, state.threads if state else threads)
        self.setup = set_up(spec, workspace, self._evaluated, data)
        self.plan, self.model, self.evaluator = self.setup.plan, self.setup.model, self.setup.evaluator
        self.results = state.results if state else resume.Results()
        if self.results.normalization is not None:
            statistics = self.results.normalization.normalization
            self.setup.normalize_by(statistics.mean, statistics.std)
        self.setup.head.update(self.results.head or {})
        self.stepper = self._stepper()
        # w̄ as the pull sees it, in the parameters' dtype: w_0 until the first snapshot.
        self.anchor = [p.detach().clone() for p in self.stepper.parameters]
        self.course = Course(self.setup, self.method, self.results)
        self.estimate = self._estimate(state.step if state else 0, begun=state is not None)
        scaled = self.stepper.scaler.is_enabled()
        self.meter = Meter(self.course.schedule.total_steps, self.course.rate_field, reporter.metrics, scaled)
        self.trajectory = self._new_trajectory()
        self.batches = self.setup.batches()
        self.states = resume.StateKeeper(workspace.scratch, workspace.save_every_seconds)
        self._is_control = data is not None
        self._heartbeat_at, self._told_late = time.monotonic(), False
        if state is not None:
            self._restore(state)

    # The method, top to bottom.

    def run(self) -> Outcome:
        """Train, average and compare; see `run` of the module."""
        self._heartbeat("loading", None)
        if self.results.start is None:
            self._evaluate_start()
            before = self.estimate.fraction
            self.estimate = self._estimate(0, begun=True)  # again: the kind of start may have changed the schedule
            self.estimate.least = before
        self._go_on_training()
        self.batches.start(self.course.ahead())
        first_step = self.course.step
        while not self.course.is_over:
            self._meet()
            position = self.course.position = self.course.at(self.course.step)
            try:
                self._advance(position, self.course.step == first_step)
            except Diverged as error:
                self._back_off_from(error, position)
        return self._conclude()

    def _advance(self, position: Position, first: bool) -> None:
        """Take a step, and all that comes after it. first: whether it is this attempt's first. Raises Diverged."""
        self.evaluator.where = f"after step {position.step + 1}"
        self.evaluator.advice = f"lower {self.course.rate_field(position.phase)}"
        self._train_step(position)
        self.course.step += 1
        self._follow(position)
        if self.course.visits(position):
            self._visit(position)
        if position.ends_cycle and not self._back_off_if_forgotten(position):
            self._take_snapshot(position)
        stopped = self._should_stop_early(position) and self._stop_early(position)
        durable = position.ends_phase or stopped
        if durable or self.states.due:
            self._save(durable)
        if first or durable or self._heartbeat_due():
            self.meter.check()
            self._heartbeat(position.phase, position, can_stop=True)

    def _evaluate_start(self) -> None:
        if self.spec.find_normalization:
            self.results.normalization = normalization_probe.find_normalization(self.setup, self.reporter)
        if self.plan.recipe.head_epochs:
            self._probe_head()
        starting.find_out(self.setup, self.workspace.shared, self.reporter, self.results, self.course, self.stepper)

    def _probe_head(self) -> None:
        """Train the classifier by itself; what is planned and recorded from the start on begins with it."""
        self.results.head = probe_head(self.setup, self.course.schedule)
        self.setup.head.update(self.results.head)
        for anchor, parameter in zip(self.anchor, self.stepper.parameters, strict=True):
            anchor.copy_(parameter.detach())
        self.course.plan()
        self.trajectory = self._new_trajectory()
        self.reporter.log(
            "info", f"the classifier was trained by itself for {self.plan.recipe.head_epochs:g} epochs first"
        )

    def _train_step(self, position: Position) -> None:
        batch = self.batches.next()
        pull = self.course.pull(position)
        logged = position.ends_phase or (position.step + 1) % self.meter.every == 0

        def check(result: StepResult) -> None:
            """End the job before the weights are changed by what is not finite; a GPU is not waited for, but at heartbeats."""
            self.meter.add(position, result, batch.images, pull)
            if self.setup.device.type == "cpu":
                self.meter.check()

        self.stepper.take(batch.inputs, batch.target, position.step, position.lr, pull, self.anchor, logged, check)
        self.estimate.trained(batch.images)

    def _visit(self, position: Position) -> None:
        if not self.course.schedule.visits_every_step:  # there the snapshots are checked
            self.meter.check()
            self._check_finite(position)
        self.ranks.share_buffers(self.model)
        self.course.average.visit(self.model, position.cycle)

    def _take_snapshot(self, position: Position) -> None:
        """Write and evaluate the snapshot, let the average select, and evaluate w̄ so far."""
        self.meter.check()
        self.ranks.share_buffers(self.model)
        self._check_finite(position)
        n, path = position.cycle, self.workspace.snapshot(position.cycle)
        outputs = self.evaluator.predict_held_out(self.model)
        add_to_ensemble(self.setup.data.task, self.results, outputs)
        scores = self.evaluator.scores(outputs)
        score, self.results.on_sets["last"] = scores.report, dict(scores.sets)
        self.results.snapshots.append(score)
        if self.ranks.leads:
            exact = self.spec.meetings is not None
            self.setup.writer.write(path, self.model.state_dict(), 1, n, score.temperature, exact)
        self.results.snapshot_steps.append(self.course.step)
        self.reporter.snapshot(n, self.course.step, str(path), score)
        self.course.average.select(SelectionEvaluator(self.setup, self.reporter, self.course.limits))
        self._refresh_anchor()
        self._keep_probe_answers("last", self.model)
        probe_images.add_to_ensemble(self.results.probe, "last")
        of_mean = self.evaluator.score(self.evaluator.predict_mean(self.course.average.so_far))
        self.reporter.averaged(self.results.add_to_curve(of_mean), of_mean)
        self._keep_probe_answers(f"{probe_images.CURVE}{len(self.results.averaged)}", self.evaluator.network)
        self._go_on_training()

    def _meet(self) -> None:
        """Go on from the mean of all replicas, where they meet after the snapshot before this step. Raises MeetingReached."""
        n = meeting.due(self.spec.meetings, self.results, self.course.step)
        if n is None:
            return
        found = meeting.meet(self.setup, self.workspace, n, lambda: self._heartbeat("loading", self.course.position))
        self.results.meetings.append(found)
        self.reporter.log(
            "info", f"the replicas met after snapshot {n}, at a mean distance of {found.spread:g} from their mean"
        )
        self._go_on_training()

    def _keep_probe_answers(self, name: str, model: torch.nn.Module) -> None:
        probe_images.record(self.setup, self.results.probe, name, model)

    def _take_last_snapshot(self, position: Position) -> None:
        """Take a snapshot within a cycle, where training ends; its weights enter the mean, once."""
        if not self.course.visits(position):
            self._visit(position)
        self._take_snapshot(position)

    def _refresh_anchor(self) -> None:
        mean = self.course.average.so_far.mean(torch.float32)
        self._check_all_finite(mean.values(), "the averaged weights", self.course.position)
        names = [name for name, p in self.model.named_parameters() if p.requires_grad]
        for anchor, name in zip(self.anchor, names, strict=True):
            anchor.copy_(mean[name])

    def _conclude(self) -> Outcome:
        self._heartbeat("report", self.course.position)
        if self.trajectory is not None:
            self.trajectory.end_last_epoch()
        return conclude(
            self.setup,
            self.reporter,
            self.results,
            self.course.average,
            limits_of(self.setup, self.course.schedule, self.course.taken),
            [self.workspace.snapshot(n) for n in range(1, len(self.results.snapshots) + 1)],
            self.trajectory.epochs if self.trajectory else None,
            self._control if self.method.control else None,
        )

    def _control(self) -> TrainedControl:
        """Train and score the control; where the job has probe images, the evaluator's network holds it afterwards."""
        if self.results.finished_on_request:
            raise decisions.ControlLeftOut("the job was finished before its training was over")
        if decisions.walked_as_control(self.method, self.course.schedule, self.results):
            self.reporter.log(
                "info", "control: the walk was the control's, and its last iterate is the control's model"
            )
            network, weights = self.evaluator.network, self.workspace.scratch / "control.safetensors"
            self.evaluator.hold(mean_of(self.model), recompute=False)  # as its file holds it
            scores = self.evaluator.scores(self.evaluator.predict_held_out(network))
            if self.ranks.leads:
                self.setup.writer.write(weights, network.state_dict(), 1, temperature=scores.report.temperature)
            return TrainedControl(scores, weights)
        spec, workspace = decisions.control_of(
            self.spec, self.workspace, self.method, self.course.schedule, self.results.normalization
        )
        # The thread count is part of the bits, and a job that went on has another than this host's setting may be.
        workspace = replace(workspace, threads=torch.get_num_threads() * self.ranks.size)
        reporter = ControlReporter(self.reporter, self.estimate)
        outcome = TrainingJob(spec, workspace, reporter, self.setup.data).run()
        result = outcome.result
        if self.spec.probe is not None:
            self.evaluator.network.load_state_dict(self.setup.read(outcome.weights))
        on_sets = {name: one.metrics.averaged for name, one in result.evaluation.items()}
        return TrainedControl(Scores(result.metrics.averaged, on_sets), outcome.weights)

    # Decisions by held-out and training images between the steps: stopping early, backing off.

    def _should_stop_early(self, position: Position) -> bool:
        """Return whether nothing more enters w̄, or it has not improved on the selection split for as long as the recipe waits.

        At the end of each epoch or cycle w̄ is scored for it, and counted.
        """
        patience = self.plan.recipe.early_stopping
        if position.ends_cycle and self.course.average.has_ended and not self.course.is_over:
            return True
        if patience is None or self.course.is_over or self.course.taken == 0:
            return False
        ends_epoch = position.step_in_epoch + 1 == self.course.schedule.steps_per_epoch
        if not (ends_epoch if self.course.schedule.stops_by == "epochs" else position.ends_cycle):
            return False
        self.meter.check()
        self.ranks.share_buffers(self.model)
        self._check_finite(position)
        loss = self.evaluator.selection_losses(self._mean_so_far()).mean().item()
        self._go_on_training()
        return decisions.out_of_patience(self.results, loss, patience)

    def _mean_so_far(self) -> Mean:
        """Return w̄, also between the snapshots of a plain fine-tune, where it is w."""
        return mean_of(self.model) if isinstance(self.method, Plain) else self.course.average.so_far

    def _stop_early(self, position: Position) -> bool:
        """End the training here, with a last snapshot; False if the job backs off instead."""
        if not position.ends_cycle:
            if self._back_off_if_forgotten(position):
                return False
            self._take_last_snapshot(position)
        why = f"the loss of the mean has not been below {self.results.best} for {self.plan.recipe.early_stopping} "
        why = "nothing more enters the mean" if self.course.average.has_ended else why + self.course.schedule.stops_by
        self.reporter.log(
            "info",
            f"early stopping: {why}; {self.course.taken} of {self.course.schedule.total_steps} steps are taken",
        )
        self.course.end_here()
        return True

    def _finish(self, position: Position) -> None:
        """End the training here, on request, once there is something to average; then the rest of the job is done.

        A cycle of `cyclic_swa` that was begun is left out: its weights have not settled. Others average what they visited.
        Raises ControlLeftOut in the control, which is no longer waited for.
        """
        if self._is_control:
            raise decisions.ControlLeftOut("the job was finished before the control's training was over")
        if not self.results.snapshots or self.course.is_over:
            return
        if not position.ends_cycle and not isinstance(self.method, CyclicSwa):
            self._take_last_snapshot(position)
        self.reporter.log(
            "info",
            f"finished on request, after {self.course.taken} of {self.course.schedule.total_steps} steps: "
            f"the average is of {len(self.results.snapshots)} snapshots",
        )
        self.results.finished_on_request = True
        self.course.end_here()
        self._save(durable=True)

    def _back_off_if_forgotten(self, position: Position) -> bool:
        """Start again from w_0 at a third of the high rate, if the first snapshot has forgotten its training images.

        Returns whether it does.
        """
        results = self.results
        if position.cycle > 1 or not self._may_back_off:
            return False
        self.meter.check()
        self.ranks.share_buffers(self.model)
        self._check_finite(position)
        accuracy = self.evaluator.settled_train_score(self.model).accuracy
        if not decisions.has_forgotten(results.start_train_accuracy, accuracy, self.setup.data.chance):
            return False
        measure = MEASURES[self.setup.data.task.name]
        self._back_off(
            position,
            f"the first snapshot has {measure.named(accuracy, 1)} on its training images, the start had "
            f"{measure.text(results.start_train_accuracy, 1)}",
        )
        return True

    @property
    def _may_back_off(self) -> bool:
        return self.method.back_off and self.results.back_offs < decisions.MAX_BACK_OFFS

    def _back_off_from(self, error: Diverged, position: Position) -> None:
        """Start again in the same way where training diverged before the first snapshot; raise the error where it may not.

        position: of the step that was taken last; on a GPU that may be after the one that the error is about.
        """
        try:
            self.meter.check()
        except Diverged as earlier:  # of a step that was not read yet
            error = earlier
        first = self.meter.diverged_at
        hopeless = first is not None and first.step == self.results.discarded_steps  # at w_0, whatever the rate
        # Ranks would have to agree; a snapshot is evaluated, counted and told.
        if hopeless or self.results.snapshots or self.ranks.size > 1 or not self._may_back_off:
            raise error
        position = first or position
        self.course.step = position.step + 1
        self.meter.forget()
        self._back_off(position, error.detail.partition(": lower")[0])

    def _back_off(self, position: Position, why: str) -> None:
        """Start again from w_0 at a third of the high rate. position: of the last step that is discarded."""
        results = self.results
        self.reporter.log(
            "warning",
            f"{why}: the high rate is divided by {BACK_OFF:g} and the job starts again from the start (back-off "
            f"{results.back_offs + 1} of {decisions.MAX_BACK_OFFS})",
        )
        results.back_offs += 1
        results.discarded_steps, results.discarded_epochs = self.course.step, position.epoch
        results.best, results.waited = None, 0
        self.model.load_state_dict(self.setup.start())
        self.stepper.renew()
        self.course.plan()
        self.batches.start(self.course.ahead())
        self.estimate = self._estimate(self.course.step, begun=True)
        self.trajectory = self._new_trajectory()
        self._go_on_training()

    def _check_finite(self, position: Position) -> None:
        """Raise Diverged if a weight is not finite: the last step may break one without a loss that shows it."""
        # Buffers too: running variances overflow before the weights do.
        self._check_all_finite(self.model.state_dict().values(), "the weights", position)

    def _check_all_finite(self, tensors: Iterable[torch.Tensor], what: str, position: Position | None) -> None:
        if position is None or all(bool(torch.isfinite(t).all()) for t in tensors):
            return
        raise Diverged(
            f"{what} were NaN or infinite in cycle {position.cycle} (step {position.step + 1}, "
            f"{position.phase} phase, learning rate {position.lr:g}): lower {self.course.rate_field('high')} or method.pull; "
            "snapshots made before are kept"
        )

    # Parts that are made at the start, after a back-off, and after a resume.

    def _stepper(self) -> Stepper:
        spec, softened = self.spec, self.setup.data.task.softened
        teachers = (
            Teachers(spec.teachers, self.workspace, self.plan, self.setup.device, softened) if spec.teachers else None
        )
        return Stepper(self.model, self.plan, self.setup.loss(), self.setup.device, teachers)

    def _estimate(self, step: int, begun: bool) -> ProgressEstimate:
        repeats = not decisions.walked_as_control(self.method, self.course.schedule, self.results)
        course, discarded = self.course, self.results.discarded_steps
        cost = Cost.of(self.setup, course.schedule, course.average, discarded, course.limits, repeats)
        return ProgressEstimate(cost, course.schedule, step - discarded, begun)

    def _new_trajectory(self) -> Trajectory | None:
        """Begin to record distances from the weights that the model holds, where the job asked for them."""
        if not self.spec.flatness:
            return None
        return Trajectory({name: p.detach().clone() for name, p in self.model.named_parameters()})

    def _follow(self, position: Position) -> None:
        if self.trajectory is None:
            return
        self.trajectory.update(dict(self.model.named_parameters()))
        if position.step_in_epoch + 1 == self.course.schedule.steps_per_epoch:
            self.trajectory.end_epoch()

    def _go_on_training(self) -> None:
        self.setup.train_mode()
        self.meter.pause()

    # Saving and going on.

    def _load_state(self) -> resume.State | None:
        """Load the state that the workspace names, or an older one where it is of no use; None: the job starts over."""
        path = self.workspace.resume
        while path is not None:
            try:
                return resume.load(path, self.spec.run_digest())
            except resume.OtherState as error:
                path.unlink(missing_ok=True)  # or the next attempt would try it again
                path = state_files.latest(path.parent)
                self.reporter.log("warning", f"{error}: {'an older state is tried' if path else 'the job starts over'}")
        return None

    def _restore(self, state: resume.State) -> None:
        self.model.load_state_dict(state.model)
        self.stepper.load_state_dict(state.stepper)
        self.course.average.load_state_dict(state.average)
        self.meter.load_state_dict(state.meter)
        self.course.step = state.step
        if self.trajectory is not None and state.trajectory is not None:
            self.trajectory.load_state_dict(state.trajectory, dict(self.model.named_parameters()))
        for anchor, saved in zip(self.anchor, state.anchor, strict=True):
            anchor.copy_(saved)
        if self.trajectory is not None and state.trajectory is None:
            self.reporter.log("warning", f"flatness: distances and update norms begin at step {state.step}")
        # Announced again: the attempt before may have died, or lost its lease, between writing this state and being heard.
        self.reporter.metrics(self.meter.points)
        for n, score in enumerate(self.results.averaged, start=1):
            self.reporter.averaged(n, score)
        for n, score in enumerate(self.results.snapshots, start=1):
            path = self.workspace.snapshot(n)
            if path.exists():
                step = self.results.snapshot_steps[n - 1]
                self.reporter.snapshot(n, step, str(path), score)
        self.reporter.log("info", f"went on from step {self.course.step} of {self.course.total_steps}")

    def _save(self, durable: bool) -> None:
        """Write a resumable state.

        durable: at a phase's end, meant for the blob store; in between, for this host only.
        """
        path = self.states.save(self._state() if self.ranks.leads else None, durable)
        if path is not None:
            self.reporter.saved(str(path), self.course.step, durable)

    def _state(self) -> resume.State:
        return resume.State(
            step=self.course.step,
            model=self.model.state_dict(),
            stepper=self.stepper.state_dict(),
            average=self.course.average.state_dict(),
            anchor=self.anchor,
            meter=self.meter.state_dict(),
            results=self.results,
            run=self.spec.run_digest(),
            threads=torch.get_num_threads(),
            trajectory=self.trajectory.state_dict() if self.trajectory else None,
        )

    # Reporting.

    def _evaluated(self, phase: StepPhase, images: int) -> None:
        self.estimate.evaluated(images * self.ranks.size)  # the others' share was done meanwhile
        self._heartbeat(phase, self.course.position)

    def _heartbeat_due(self) -> bool:
        if self.ranks.size > 1:
            return self.course.step % HEARTBEAT_STEPS == 0  # the ranks must agree: by the step, not by the clock
        return time.monotonic() - self._heartbeat_at >= HEARTBEAT_SECONDS

    def _heartbeat(self, phase: StepPhase, position: Position | None, can_stop: bool = False) -> None:
        self._heartbeat_at = time.monotonic()
        progress = self.estimate.progress(phase, position, self.meter, self.course.step)
        if self.results.normalization is not None:
            progress = progress.model_copy(update={"normalize": self.results.normalization.normalization})
        reason = self.reporter.heartbeat(progress)
        if can_stop:
            reason = self.ranks.from_leader(reason)
        if reason is None:
            return
        if reason == "finish":
            if can_stop and position is not None:
                self._finish(position)
            return
        if not can_stop and reason == "pause" and self.course.is_over and not self._told_late:
            self._told_late = True
            self.reporter.log("info", "a pause was asked for when training was over: what is left is evaluated first")
        if can_stop and reason != "cancel" and not self.states.saved(self.course.step):
            self._save(durable=True)
        if can_stop or reason == "cancel":
            raise StopRequested(reason)
