"""One job, top to bottom: train along the course, average what it visits, compare with everything else.

    for every step of the course:                          (courses: rates, phases, snapshots)
        w ← optimizer step on  L(w) + λ‖w̄ − w‖²          (pull)
        where the course visits:    w̄ takes w in           (averages; the troughs, w̄ ← w̄ + (w_n − w̄)/n, in cyclic_swa)
        where a snapshot is due:    w_n is kept and evaluated; BatchNorm statistics of w̄ recomputed (batch_norm), and w̄
                                    evaluated: the curve's point n
    the last w̄, or what the method chooses of it, is the result

Every number is a function of the inputs and the step, so a job that is interrupted anywhere and goes on from its last
saved state ends in the same bits.
"""

import time
from collections.abc import Iterator
from pathlib import Path

import torch
from torch import Tensor

from wbar.errors import CompileFailed, Diverged, OutOfMemory
from wbar.jobs import Arms, CurvePoint, Score, StepPhase
from wbar.method import AutoMethod, Ema, Soup
from wbar_averaging import (
    Position,
    Trajectory,
    pull_loss,
)
from wbar_training import decisions, resume, safe_path
from wbar_training.analysis import attempted, bayesian_score, flatness_images, measure_flatness
from wbar_training.averages import Mean, make_average
from wbar_training.courses import BACK_OFF, later, lay_course
from wbar_training.data.feed import Request
from wbar_training.data.mixing import mix
from wbar_training.distributed.launch import run_on_ranks
from wbar_training.distributed.ranks import BEAT_STEPS, Ranks
from wbar_training.draws import permutation
from wbar_training.evaluate import score, verdict
from wbar_training.meter import Aside, Clock, Meter, Reporter, Stopped
from wbar_training.plan import Outcome, Work
from wbar_training.setting import Setting, make_deterministic
from wbar_training.soup import Pot
from wbar_training.step import Stepper
from wbar_training.teachers import Teachers
from wbar_training.weights import run_digest

BEAT_SECONDS = 0.4  # how often the host waits for the device, to tell where the job is (it decides about no number)


@safe_path.for_children()
def run(work: Work, reporter: Reporter) -> Outcome:
    """Do the work, or what is left of it. Raises Stopped when the reporter asks, JobError when it cannot go on."""
    try:
        if work.ingredients:
            return Pot(work, reporter).cook()
        devices = work.plan().recipe.devices
        if devices > 1 and Ranks.here().size == 1:
            return run_on_ranks(work, reporter, devices, "wbar_training.loop:run")
        return Attempt(work, reporter).run()
    except torch.OutOfMemoryError as error:
        raise OutOfMemory(
            f"the device ran out of memory ({str(error).splitlines()[0]}): lower recipe.batch_size or image_size"
        ) from error
    except RuntimeError as error:
        # By name: torch._dynamo takes seconds to import, and only jobs that compile have it.
        if "TorchDynamoException" not in {kind.__name__ for kind in type(error).__mro__}:
            raise
        raise CompileFailed(
            f"torch.compile failed ({(str(error).splitlines() or [''])[0][:200]}): is there a C++ compiler (CPU) or Triton "
            "(GPU) on the worker? Or leave recipe.compile out"
        ) from error


class Attempt:
    """The pieces of one run of a job, and the few methods that move them."""

    def __init__(self, work: Work, reporter: Reporter, images: Setting | None = None) -> None:
        self.work, self.reporter, self.plan = work, reporter, work.plan()
        self.ranks = Ranks.here()
        method = work.chosen_method()
        assert not isinstance(method, Soup)
        self.method = method
        state = self._load_state()
        threads = max(1, work.threads // self.ranks.size) if work.threads else None
        make_deterministic(work, state.threads if state else threads)
        self.setting = Setting(work, self._tick, images)
        self.device, self.train, self.val = self.setting.device, self.setting.train, self.setting.val
        self.results = state.results if state else resume.Results()
        self._build()
        self.clock = self._clock(state.step if state else 0)
        self.meter = Meter(self.course.total_steps, self.stepper.scaler.is_enabled())
        self.step = 0
        self.position: Position | None = None
        self.trajectory = self._new_trajectory()
        self._saved_at = self._beat_at = time.monotonic()
        self._durable: Path | None = None
        self._order_of, self._shuffled = 0, torch.empty(0)
        if state is not None:
            self._restore(state)

    def _new_trajectory(self) -> Trajectory | None:
        """The way from the weights that the model holds, where the job asked for it."""
        if not self.work.flatness:
            return None
        return Trajectory({name: p.detach().clone() for name, p in self.model.named_parameters()})

    def _load_state(self) -> resume.State | None:
        if self.work.resume is None:
            return None
        try:
            return resume.load(self.work.resume, run_digest(self.work), torch.device("cpu"))
        except resume.OtherState as error:
            self.reporter.log("warning", f"{error}: the job starts over")
            self.work.resume.unlink(missing_ok=True)  # or the next attempt would try it again
            return None

    def _build(self) -> None:
        self.model, self.probe = self.setting.model, self.setting.probe
        teachers = Teachers(self.work.teachers, self.plan, self.device) if self.work.teachers else None
        self.stepper = Stepper(self.model, self.plan, self.setting.loss(), self.device, teachers)
        self.parameters = self.stepper.parameters
        self.names = [name for name, p in self.model.named_parameters() if p.requires_grad]
        # w̄ as the pull sees it, in the parameters' dtype: w_0 until the first snapshot.
        self.anchor = [p.detach().clone() for p in self.parameters]
        self.per_epoch = -(-len(self.train) // self.plan.batch_size)
        least = 2 * self.ranks.size  # a batch of one image has no variance
        if 0 < len(self.train) % self.plan.batch_size < least and self.per_epoch > 1:
            self.per_epoch -= 1
        self._lay_course()

    def _lay_course(self) -> None:
        """The way from w_0, as it is known: a back-off or a memorised start change it before its first snapshot."""
        results = self.results
        self.course = lay_course(self.method, self.per_epoch, results.backed_off, results.kind)
        self.average = make_average(self.method, self.course, self.model)
        self.total_steps = results.stopped_at or results.discarded_steps + self.course.total_steps

    def _clock(self, step: int) -> Clock:
        """All the work in forward-pass images: training, the start's evaluation, every snapshot, the end's choices."""
        recompute, course, held_out = self.setting.recomputed_images, self.course, len(self.val)
        images = min(len(self.train), self.per_epoch * self.plan.batch_size)
        begin = held_out + (held_out + recompute if recompute else 0)
        per_snapshot = 2 * held_out + recompute
        after = float(recompute + self.work.swag * (recompute + held_out))
        after += flatness_images(self.setting) if self.work.flatness else 0
        after += self.average.candidates * (recompute + held_out)
        steps = course.total_steps
        if self.method.control:
            control = self.method.total_epochs * self.per_epoch
            after, steps = after + Clock.TRAINING * images / self.per_epoch * control, steps + control
        begun = step - self.results.discarded_steps
        training = Clock.TRAINING * images / self.per_epoch
        total = training * course.total_steps + begin + len(course.snapshots) * per_snapshot + after
        done = training * begun + sum(mark <= begun for mark in course.snapshots) * per_snapshot
        steps += self.results.discarded_steps
        return Clock(total, done + (begin if step else 0), len(course.snapshots), steps)

    def _restore(self, state: resume.State) -> None:
        self.model.load_state_dict(state.model)
        self.stepper.load_state_dict(state.stepper)
        self.average.load_state_dict(state.average)
        self.meter.load_state_dict(state.meter)
        self.step = state.step
        if self.trajectory is not None and state.trajectory is not None:
            self.trajectory.load_state_dict(state.trajectory, dict(self.model.named_parameters()))
        for mine, theirs in zip(self.anchor, state.anchor, strict=True):
            mine.copy_(theirs)
        for n, found in enumerate(self.results.snapshots, start=1):
            # Announced again: the attempt before may have died between writing the file and handing it over.
            path = self._snapshot_path(n)
            if path.exists():
                step = self.results.discarded_steps + self.course.snapshots[n - 1]
                self.reporter.snapshot(n, step, str(path), Score.model_validate(found))
        self.reporter.log("info", f"went on from step {self.step} of {self.total_steps}")

    # The method, top to bottom.

    def run(self) -> Outcome:
        self._beat("loading", None)
        if self.results.start is None:
            self._evaluate_start()
        self.setting.train_mode()
        self.meter.pause()
        self._batches = self.setting.feed.stream(self._requests())
        began = self.step
        while self.step < self.total_steps:
            position = self.position = self._here()
            self.setting.where = f"after step {position.step + 1}"
            self._train_step(position)
            self.step += 1
            self._follow(position)
            if self.course.visits(position.step - self.results.discarded_steps):
                self._visit(position)
            if position.ends_cycle:
                self._take_snapshot(position)
            if position.ends_phase:
                self._save(durable=True)
            elif time.monotonic() - self._saved_at >= self.work.save_every_seconds:
                self._save(durable=False)
            first = self.step == began + 1
            if first or position.ends_phase or self._should_beat():
                self.meter.check()
                self._beat(position.phase, position, can_stop=True)
        return self._finish()

    def _requests(self) -> Iterator[Request]:
        """The batches from here to the end of the course."""
        results = self.results
        for step in range(self.step, self.total_steps):
            place = self.course.at(step - results.discarded_steps)
            order = self._order(place.epoch + results.discarded_epochs)
            begin = place.step_in_epoch * self.plan.batch_size
            yield Request(order[begin : begin + self.plan.batch_size], "augment", step)

    def _train_step(self, position: Position) -> None:
        inputs, chosen = next(self._batches)
        labels = self.train.labels[chosen].to(self.device, non_blocking=True)
        inputs, target = mix(self.plan.recipe, inputs, labels, self.plan.seed, position.step)
        pull = self.course.pull(position.step - self.results.discarded_steps)
        logged = position.ends_phase or (position.step + 1) % self.meter.every == 0
        taken = self.stepper.take(inputs, target, position.step, position.lr, pull, self.anchor, logged)
        self.meter.add(position, taken, len(chosen))
        self.clock.spend(len(chosen), training=True)
        if taken.norm is not None and taken.away is not None:
            far = taken.away.item()
            self.reporter.metrics([self.meter.point(position, taken.norm.item(), far, pull_loss(far, pull))])

    def _visit(self, position: Position) -> None:
        if not isinstance(self.method, Ema):  # whose every step is a visit: there the snapshots are looked through
            self.meter.check()
            self._check_finite(position)
        self.ranks.share_buffers(self.model)
        self.average.visit(self.model, position.cycle)

    def _take_snapshot(self, position: Position) -> None:
        """The snapshot, what the average decides by it, and w̄ so far: BatchNorm, evaluation."""
        self.meter.check()
        self.ranks.share_buffers(self.model)
        self._check_finite(position)
        n = position.cycle
        if n == 1 and self._should_back_off():
            self._back_off(position)
            return
        found = self.setting.predict(self.model)
        total = self.results.probabilities
        self.results.probabilities = found.probabilities.double() + (0 if total is None else total)
        snapshot = score(found.probabilities, self.val.labels, found.losses)
        self.results.snapshots.append(snapshot.model_dump())
        path = self._snapshot_path(n)
        if self.ranks.leads:
            self.setting.writer.write(path, self.model.state_dict(), snapshots=1, n=n)
        self.reporter.snapshot(n, self.step, str(path), snapshot)

        self.average.judge(self.setting.judge)
        self._stop_early()
        self._refresh_anchor()
        averaged = self._evaluate(self.average.so_far)
        self.results.averaged.append(averaged.model_dump())
        self.reporter.averaged(n, averaged)
        self.setting.train_mode()
        self.meter.pause()

    def _stop_early(self) -> None:
        patience = self.plan.recipe.early_stopping
        if patience is None:
            return
        loss = self.setting.judge(self.average.so_far).mean().item()
        if decisions.out_of_patience(self.results, loss, patience) and self.step < self.total_steps:
            self.reporter.log(
                "info",
                f"early stopping: the loss of the mean has not been below {self.results.best:.5f} for {patience} snapshots; "
                f"{len(self.results.snapshots)} of {len(self.course.snapshots)} are made",
            )
            self.results.stopped_at = self.total_steps = self.step

    def _should_back_off(self) -> bool:
        if not self.method.back_off or self.results.backed_off >= decisions.MAX_BACK_OFFS:
            return False
        # With recomputed statistics: at a high rate the tracked ones lag behind and say little about the weights.
        self.probe.load_state_dict(self.model.state_dict())
        self.setting.settle(self.probe)
        self.results.trough_train_accuracy = self.setting.train_score(self.probe).accuracy
        return decisions.has_forgotten(self.results, self.setting.chance)

    def _back_off(self, position: Position) -> None:
        """The high rate was too high for this start: again from w_0, with a third of it."""
        results = self.results
        self.reporter.log(
            "warning",
            f"the first snapshot has an accuracy of {results.trough_train_accuracy:.1%} on its training images, the start had "
            f"{results.start_train_accuracy:.1%}: the high rate is divided by {BACK_OFF:g} and the job starts again from the "
            f"start (back-off {results.backed_off + 1} of {decisions.MAX_BACK_OFFS})",
        )
        results.backed_off += 1
        results.discarded_steps, results.discarded_epochs = self.step, position.epoch
        self.model.load_state_dict(self.setting.start())
        self.stepper.renew()
        self._lay_course()
        self._batches = self.setting.feed.stream(self._requests())
        self.clock = self._clock(self.step)
        self.trajectory = self._new_trajectory()
        self.setting.train_mode()
        self.meter.pause()

    def _finish(self) -> Outcome:
        self._beat("report", None)
        mean, choice = self.average.finish(self.setting.judge, lambda message: self.reporter.log("info", message))
        weights, pytorch = self.setting.write_result(mean, len(self.results.snapshots))
        final = self._evaluate(mean) if choice else Score.model_validate(self.results.averaged[-1])
        prefix, cycles, results = self.work.prefix, len(self.results.snapshots), self.results
        swag = flatness = None
        if self.work.swag:
            snapshots = [self.setting.read(self._snapshot_path(n), prefix) for n in range(1, cycles + 1)]
            swag = attempted(self.reporter, "SWAG", lambda: bayesian_score(self.setting, snapshots, self.work.swag))
        if self.trajectory is not None:
            last = self.setting.read(self._snapshot_path(cycles), prefix)
            averaged, epochs = self.setting.read(weights, prefix), self.trajectory.epochs
            flatness = attempted(
                self.reporter, "the flatness", lambda: measure_flatness(self.setting, last, averaged, epochs)
            )
        assert results.probabilities is not None
        assert results.averaged_losses is not None
        assert results.start_losses is not None
        # After what reads the file, since it may put the start there.
        selected = decisions.guard(self.setting, mean, self.reporter) if self.method.guard else "averaged"
        metrics = Arms(
            start=Score.model_validate(results.start),
            start_recomputed=Score.model_validate(results.start_recomputed),
            last=Score.model_validate(results.snapshots[-1]),
            averaged=final,
            ensemble=score(results.probabilities / cycles, self.val.labels),
            swag=swag,
            control=attempted(self.reporter, "the control", self._control) if self.method.control else None,
        )
        curve = [
            CurvePoint(n=n, accuracy=point["accuracy"], loss=point["loss"])
            for n, point in enumerate(results.averaged, start=1)
        ]
        judged = verdict(results.averaged_losses, results.start_losses)
        return Outcome(
            weights, pytorch, metrics, curve, judged, self.setting.held_out, flatness, choice=choice, selected=selected
        )

    def _control(self) -> Score:
        work = decisions.control_of(self.work, self.method)
        return Attempt(work, Aside(self.reporter, self.clock), self.setting).run().metrics.averaged

    # What the method is made of.

    def _here(self) -> Position:
        results = self.results
        position = self.course.at(self.step - results.discarded_steps)
        return later(position, results.discarded_steps, results.discarded_epochs)

    def _evaluate_start(self) -> None:
        start, recomputed, self.results.start_losses = self.setting.start_scores()
        known = self.setting.train_score(self.model)
        self.results.start_train_accuracy = known.accuracy
        if isinstance(self.method, AutoMethod):
            held_out = self.setting.predict(self.model, self.setting.choose).losses.mean().item()
            self.results.kind = decisions.kind_of_start(self.method, known.loss, held_out)
            self._lay_course()
            self.reporter.log(
                "info",
                f"auto: the start's loss is {known.loss:.4f} on augmented training images and {held_out:.4f} on held-out ones: "
                f"it is {self.results.kind}, and the high rate is {self.course.at(0).lr:g}",
            )
        self.results.start, self.results.start_recomputed = start.model_dump(), recomputed.model_dump()
        warning = self.setting.near_chance(start)
        if warning is not None:
            self.reporter.log("warning", warning)

    def _follow(self, position: Position) -> None:
        """The distance from the start and the size of the steps, where the job asked for them."""
        if self.trajectory is None:
            return
        self.trajectory.update(dict(self.model.named_parameters()))
        if position.step_in_epoch + 1 == self.per_epoch:
            self.trajectory.end_epoch()

    def _check_finite(self, position: Position) -> None:
        """The last step before a trough may have broken the weights without a loss that would have shown it."""
        # Buffers too: running variances overflow before the weights do.
        if all(bool(torch.isfinite(t).all()) for t in self.model.state_dict().values()):
            return
        raise Diverged(
            f"the weights were NaN or infinite at the end of cycle {position.cycle} (step {position.step + 1}, "
            f"{position.phase} phase, learning rate {position.lr:g}): lower method.high.lr or method.pull; snapshots made "
            "before are kept"
        )

    def _evaluate(self, mean: Mean) -> Score:
        mean.copy_to(self.probe)
        self.setting.settle(self.probe)
        found = self.setting.predict(self.probe)
        self.results.averaged_losses = found.losses
        return self.setting.score(found)

    def _order(self, epoch: int) -> Tensor:
        """The epoch's order of the training images; drawn once per epoch, a function of seed and epoch."""
        if self._order_of != epoch:
            self._order_of, self._shuffled = epoch, permutation(len(self.train), self.plan.seed, "order", epoch)
        return self._shuffled

    def _refresh_anchor(self) -> None:
        mean = self.average.so_far.mean(torch.float32)
        for anchor, name in zip(self.anchor, self.names, strict=True):
            anchor.copy_(mean[name])

    def _snapshot_path(self, n: int) -> Path:
        return self.work.scratch / f"snapshot-{n:04d}.safetensors"

    def _save(self, durable: bool) -> None:
        """durable: at a phase's end, meant for the blob store; in between, for this host only."""
        self._saved_at = time.monotonic()
        if not self.ranks.leads:
            return
        state = resume.State(
            step=self.step,
            model=self.model.state_dict(),
            stepper=self.stepper.state_dict(),
            average=self.average.state_dict(),
            anchor=self.anchor,
            meter=self.meter.state_dict(),
            results=self.results,
            run=run_digest(self.work),
            threads=torch.get_num_threads(),
            trajectory=self.trajectory.state_dict() if self.trajectory else None,
        )
        path = resume.save(self.work.scratch, state, keep=self._durable)
        self._durable = path if durable else self._durable
        self.reporter.saved(str(path), self.step, durable)

    def _tick(self, phase: StepPhase, images: int) -> None:
        self.clock.spend(images * self.ranks.size, training=False)  # the others' share was done meanwhile
        self._beat(phase, self.position)

    def _should_beat(self) -> bool:
        if self.ranks.size > 1:
            return self.step % BEAT_STEPS == 0  # the ranks must agree: by the step, not by the clock
        return time.monotonic() - self._beat_at >= BEAT_SECONDS

    def _beat(self, phase: StepPhase, position: Position | None, can_stop: bool = False) -> None:
        self._beat_at = time.monotonic()
        reason = self.reporter.heartbeat(self.clock.progress(phase, position, self.meter, self.step))
        if can_stop:
            reason = self.ranks.from_leader(reason)
        if reason is None:
            return
        if can_stop and reason != "cancel" and not (self._durable and resume.step_of(self._durable) == self.step):
            self._save(durable=True)
        if can_stop or reason == "cancel":
            raise Stopped(reason)
