"""One job, top to bottom: train through the cycles, average the troughs, compare with everything else.

    for every step of the schedule:
        w ← optimizer step on  L(w) + λ‖w̄ − w‖²          (cyclic_lr, pull)
        at the end of each low phase, the trough of cycle n:
            snapshot w_n;  w̄ ← w̄ + (w_n − w̄)/n            (running_mean)
            BatchNorm statistics of w̄ recomputed           (batch_norm), and w̄ evaluated: the curve's point n
    the last w̄ is the result

Every number is a function of the inputs and the step, so a job that is interrupted anywhere and goes on from its last
saved state ends in the same bits.
"""

import time
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from averaging import (
    CyclicSchedule,
    Position,
    RunningMean,
    Trajectory,
    add_folded_pull_gradient,
    add_pull_gradient,
    can_fold_pull,
    distance,
    fold_pull,
    pull_loss,
)
from training import resume
from training.analysis import attempted, bayesian_score, flatness_images, measure_flatness
from training.draws import key, permutation
from training.evaluate import score, verdict
from training.meter import Clock, Meter, Reporter, Stopped
from training.optim import make_optimizer
from training.plan import Outcome, Work
from training.setting import Setting, make_deterministic
from training.soup import Pot
from training.weights import run_digest
from wbar.errors import Diverged, OutOfMemory
from wbar.jobs import Arms, CurvePoint, Score, StepPhase

BEAT_SECONDS = 0.4  # how often the host waits for the device, to tell where the job is (it decides about no number)


def run(work: Work, reporter: Reporter) -> Outcome:
    """Do the work, or what is left of it. Raises Stopped when the reporter asks, JobError when it cannot go on."""
    try:
        return Pot(work, reporter).cook() if work.ingredients else Attempt(work, reporter).run()
    except torch.OutOfMemoryError as error:
        raise OutOfMemory(
            f"the device ran out of memory ({str(error).splitlines()[0]}): lower recipe.batch_size or image_size"
        ) from error


class Attempt:
    """The pieces of one run of a job, and the few methods that move them."""

    def __init__(self, work: Work, reporter: Reporter) -> None:
        self.work, self.reporter, self.plan = work, reporter, work.plan()
        state = self._load_state()
        make_deterministic(work, state.threads if state else work.threads)
        self.setting = Setting(work, self._tick)
        self.device, self.train, self.val = self.setting.device, self.setting.train, self.setting.val
        self._build()
        self.clock = self._clock(state.step if state else 0)
        self.meter = Meter(self.schedule.total_steps)
        self.results = resume.Results()
        self.step = 0
        self.position: Position | None = None
        self.trajectory = (
            Trajectory({name: p.detach().clone() for name, p in self.model.named_parameters()})
            if work.flatness
            else None
        )
        self._saved_at = self._beat_at = time.monotonic()
        self._durable: Path | None = None
        self._order_of, self._shuffled = 0, torch.empty(0)
        if state is not None:
            self._restore(state)

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
        plan = self.plan
        self.model, self.probe = self.setting.model, self.setting.probe
        self.parameters = [p for p in self.model.parameters() if p.requires_grad]
        self.names = [name for name, p in self.model.named_parameters() if p.requires_grad]
        self.optimizer = make_optimizer(self.model, plan)
        # The same number, one pass over the weights less; not where clipping must see the whole gradient.
        self.folded = plan.grad_clip_norm is None and can_fold_pull(self.optimizer)
        if self.folded:
            fold_pull(self.optimizer, plan.pull)
        self.mean = RunningMean(self.model, dtype=torch.float64)
        if plan.include_start:
            self.mean.update(self.model)
        # w̄ as the pull sees it, in the parameters' dtype: w_0 until the first snapshot.
        self.anchor = [p.detach().clone() for p in self.parameters]
        per_epoch = -(-len(self.train) // plan.batch_size)
        if len(self.train) % plan.batch_size == 1 and per_epoch > 1:
            per_epoch -= 1  # a batch of one image has no variance
        self.schedule = CyclicSchedule(
            plan.cycles, plan.high_lr, plan.low_lr, plan.high_epochs, plan.low_epochs, per_epoch
        )

    def _clock(self, step: int) -> Clock:
        """All the work in forward-pass images: training, the start's evaluation, every trough, the last recompute."""
        recompute = self.setting.recomputed_images
        per_epoch = self.schedule.steps_per_epoch
        images = min(len(self.train), per_epoch * self.plan.batch_size)
        begin = len(self.val) + (len(self.val) + recompute if recompute else 0)
        trough = 2 * len(self.val) + recompute
        epochs = self.schedule.total_steps // per_epoch
        after = recompute + self.work.swag * (recompute + len(self.val))
        after += flatness_images(self.setting) if self.work.flatness else 0
        total = Clock.TRAINING * epochs * images + begin + self.plan.cycles * trough + after
        trained = step // per_epoch * images + step % per_epoch * self.plan.batch_size
        done = Clock.TRAINING * trained + step // self.schedule.steps_per_cycle * trough + (begin if step else 0)
        return Clock(total, done, self.plan.cycles, self.schedule.total_steps)

    def _restore(self, state: resume.State) -> None:
        self.model.load_state_dict(state.model)
        self.optimizer.load_state_dict(state.optimizer)
        self.mean.load_state_dict(state.mean)
        self.meter.load_state_dict(state.meter)
        self.results, self.step = state.results, state.step
        if self.trajectory is not None and state.trajectory is not None:
            self.trajectory.load_state_dict(state.trajectory, dict(self.model.named_parameters()))
        if self.results.snapshots:
            self._refresh_anchor()
        for n, found in enumerate(self.results.snapshots, start=1):
            # Announced again: the attempt before may have died between writing the file and handing it over.
            path = self._snapshot_path(n)
            if path.exists():
                self.reporter.snapshot(n, n * self.schedule.steps_per_cycle, str(path), Score.model_validate(found))
        self.reporter.log("info", f"went on from step {self.step} of {self.schedule.total_steps}")

    # The method, top to bottom.

    def run(self) -> Outcome:
        self._beat("loading", None)
        if self.results.start is None:
            self._evaluate_start()
        self.model.train()
        self.meter.pause()
        began = self.step
        while self.step < self.schedule.total_steps:
            position = self.position = self.schedule.at(self.step)
            self.setting.where = f"after step {position.step + 1}"
            self._train_step(position)
            self.step += 1
            self._follow(position)
            if position.ends_cycle:
                self._close_cycle(position)
            if position.ends_phase:
                self._save(durable=True)
            elif time.monotonic() - self._saved_at >= self.work.save_every_seconds:
                self._save(durable=False)
            first = self.step == began + 1
            if first or position.ends_phase or time.monotonic() - self._beat_at >= BEAT_SECONDS:
                self.meter.check()
                self._beat(position.phase, position, can_stop=True)
        return self._finish()

    def _train_step(self, position: Position) -> None:
        order = self._order(position.epoch)
        begin = position.step_in_epoch * self.plan.batch_size
        chosen = order[begin : begin + self.plan.batch_size]
        images = self.train.images[chosen.to(self.train.images.device)]
        labels = self.train.labels[chosen].to(self.device, non_blocking=True)
        inputs = self.setting.prepare.augmented(images, "augment", position.step)
        torch.manual_seed(key(self.plan.seed, "forward", position.step))  # dropout and stochastic depth
        with torch.autocast(self.device.type, dtype=torch.bfloat16, enabled=self.plan.bfloat16):
            loss = F.cross_entropy(self.model(inputs), labels, label_smoothing=self.plan.label_smoothing)
        self.optimizer.zero_grad(set_to_none=True)
        loss.backward()  # type: ignore[no-untyped-call]
        logged = position.ends_phase or (position.step + 1) % self.meter.every == 0
        norm: Tensor | None = None
        if logged:
            norm = nn.utils.get_total_norm([p.grad for p in self.parameters if p.grad is not None])
        add_pull = add_folded_pull_gradient if self.folded else add_pull_gradient
        add_pull(self.parameters, self.anchor, self.plan.pull)
        if self.plan.grad_clip_norm is not None:
            nn.utils.clip_grad_norm_(self.parameters, self.plan.grad_clip_norm)
        away = distance(self.parameters, self.anchor) if logged else None  # of the w that the gradient belongs to
        for group in self.optimizer.param_groups:
            group["lr"] = position.lr
        self.optimizer.step()
        self.meter.add(position, loss.detach(), len(chosen))
        self.clock.spend(len(chosen), training=True)
        if norm is not None and away is not None:
            far = away.item()
            self.reporter.metrics([self.meter.point(position, norm.item(), far, pull_loss(far, self.plan.pull))])

    def _close_cycle(self, position: Position) -> None:
        """The trough: snapshot, mean, BatchNorm, evaluation."""
        self.meter.check()
        self._check_finite(position)
        n = position.cycle
        found = self.setting.predict(self.model)
        total = self.results.probabilities
        self.results.probabilities = found.probabilities.double() + (0 if total is None else total)
        snapshot = score(found.probabilities, self.val.labels, found.losses)
        self.results.snapshots.append(snapshot.model_dump())
        path = self._snapshot_path(n)
        self.setting.writer.write(path, self.model.state_dict(), snapshots=1, n=n)
        self.reporter.snapshot(n, self.step, str(path), snapshot)

        self.mean.update(self.model)
        self._refresh_anchor()
        averaged = self._evaluate_mean()
        self.results.averaged.append(averaged.model_dump())
        self.reporter.averaged(n, averaged)
        self.model.train()
        self.meter.pause()

    def _finish(self) -> Outcome:
        self._beat("report", None)
        weights, pytorch = self.setting.write_result(self.mean, self.plan.cycles)
        prefix = self.work.prefix
        swag = flatness = None
        if self.work.swag:
            snapshots = [self.setting.read(self._snapshot_path(n), prefix) for n in range(1, self.plan.cycles + 1)]
            swag = attempted(self.reporter, "SWAG", lambda: bayesian_score(self.setting, snapshots, self.work.swag))
        if self.trajectory is not None:
            last = self.setting.read(self._snapshot_path(self.plan.cycles), prefix)
            averaged, epochs = self.setting.read(weights, prefix), self.trajectory.epochs
            flatness = attempted(
                self.reporter, "the flatness", lambda: measure_flatness(self.setting, last, averaged, epochs)
            )
        results, cycles = self.results, self.plan.cycles
        assert results.probabilities is not None
        assert results.averaged_losses is not None
        assert results.start_losses is not None
        metrics = Arms(
            start=Score.model_validate(results.start),
            start_recomputed=Score.model_validate(results.start_recomputed),
            last=Score.model_validate(results.snapshots[-1]),
            averaged=Score.model_validate(results.averaged[-1]),
            ensemble=score(results.probabilities / cycles, self.val.labels),
            swag=swag,
        )
        curve = [
            CurvePoint(n=n, accuracy=point["accuracy"], loss=point["loss"])
            for n, point in enumerate(results.averaged, start=1)
        ]
        judged = verdict(results.averaged_losses, results.start_losses)
        return Outcome(weights, pytorch, metrics, curve, judged, flatness)

    # What the method is made of.

    def _evaluate_start(self) -> None:
        start, recomputed, self.results.start_losses = self.setting.start_scores()
        self.results.start, self.results.start_recomputed = start.model_dump(), recomputed.model_dump()
        warning = self.setting.near_chance(start)
        if warning is not None:
            self.reporter.log("warning", warning)

    def _follow(self, position: Position) -> None:
        """The distance from the start and the size of the steps, where the job asked for them."""
        if self.trajectory is None:
            return
        self.trajectory.update(dict(self.model.named_parameters()))
        if position.step_in_epoch + 1 == self.schedule.steps_per_epoch:
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

    def _evaluate_mean(self) -> Score:
        self.mean.copy_to(self.probe)
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
        mean = self.mean.mean(torch.float32)
        for anchor, name in zip(self.anchor, self.names, strict=True):
            anchor.copy_(mean[name])

    def _snapshot_path(self, n: int) -> Path:
        return self.work.scratch / f"snapshot-{n:04d}.safetensors"

    def _save(self, durable: bool) -> None:
        """durable: at a phase's end, meant for the blob store; in between, for this host only."""
        state = resume.State(
            step=self.step,
            model=self.model.state_dict(),
            optimizer=self.optimizer.state_dict(),
            mean=self.mean.state_dict(),
            meter=self.meter.state_dict(),
            results=self.results,
            run=run_digest(self.work),
            threads=torch.get_num_threads(),
            trajectory=self.trajectory.state_dict() if self.trajectory else None,
        )
        path = resume.save(self.work.scratch, state, keep=self._durable)
        self._durable = path if durable else self._durable
        self._saved_at = time.monotonic()
        self.reporter.saved(str(path), self.step, durable)

    def _tick(self, phase: StepPhase, images: int) -> None:
        self.clock.spend(images, training=False)
        self._beat(phase, self.position)

    def _beat(self, phase: StepPhase, position: Position | None, can_stop: bool = False) -> None:
        self._beat_at = time.monotonic()
        reason = self.reporter.heartbeat(self.clock.progress(phase, position, self.meter, self.step))
        if reason is None:
            return
        if can_stop and reason != "cancel" and not (self._durable and resume.step_of(self._durable) == self.step):
            self._save(durable=True)
        if can_stop or reason == "cancel":
            raise Stopped(reason)
