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

import copy
import time
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from averaging import (
    CyclicSchedule,
    Position,
    RunningMean,
    add_folded_pull_gradient,
    add_pull_gradient,
    can_fold_pull,
    distance,
    fold_pull,
    has_batch_norm,
    pull_loss,
    recompute_batch_norm,
)
from training import architectures, resume
from training.augment import Preparer
from training.datasets import Packed, Split, load_split
from training.draws import key, permutation
from training.evaluate import Outputs, even_slices, forward_batch, predict, score, verdict
from training.meter import Clock, Meter, Reporter, Stopped
from training.optim import make_optimizer
from training.plan import Work
from training.weights import WeightsWriter, output_names, read_tensors, run_digest
from wbar.errors import Diverged, OutOfMemory
from wbar.jobs import Arms, CurvePoint, Score, StepPhase, Verdict

BATCH_NORM_IMAGES = 2048
BEAT_SECONDS = 0.4  # how often the host waits for the device, to tell where the job is (it decides about no number)


@dataclass(frozen=True)
class Outcome:
    """The averaged weights' file and the comparison."""

    weights: Path
    pytorch: Path  # the same tensors as torch.save writes them
    metrics: Arms
    curve: list[CurvePoint]
    verdict: Verdict


def run(work: Work, reporter: Reporter) -> Outcome:
    """Do the work, or what is left of it. Raises Stopped when the reporter asks, JobError when it cannot go on."""
    try:
        return Attempt(work, reporter).run()
    except torch.OutOfMemoryError as error:
        raise OutOfMemory(
            f"the device ran out of memory ({str(error).splitlines()[0]}): lower recipe.batch_size or image_size"
        ) from error


class Attempt:
    """The pieces of one run of a job, and the few methods that move them."""

    def __init__(self, work: Work, reporter: Reporter) -> None:
        self.work, self.reporter, self.plan = work, reporter, work.plan()
        self.device = torch.device(work.device)
        state = self._load_state()
        _make_deterministic(work, state.threads if state else work.threads)
        packed = Packed.read(work.dataset)
        order = [work.classes.index(name) for name in packed.classes] if work.classes else None
        self.train = load_split(work.dataset, "train", self.plan.image_size, order)
        self.val = load_split(work.dataset, "val", self.plan.image_size, order)
        self.classes = output_names(work.classes or packed.classes, work.network.num_classes)
        self.prepare = Preparer(self.plan.mean, self.plan.std, self.plan.augment, self.plan.seed, self.device)
        if self.device.type == "cuda" and self.train.images.numel() < torch.cuda.mem_get_info()[0] // 4:
            # Otherwise the images stay on the host and are sent a batch at a time; the bits are the same.
            self.train = Split(self.train.images.to(self.device), self.train.labels)
        self._build()
        self.clock = self._clock(state.step if state else 0)
        self.meter = Meter(self.schedule.total_steps)
        self.results = resume.Results()
        self.step = 0
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
        work, plan = self.work, self.plan
        self.writer = WeightsWriter(work, self.classes)
        start, _ = architectures.load(work.network, self.writer.start())
        self.model = start.to(self.device).to(memory_format=torch.channels_last)
        self.probe = copy.deepcopy(self.model)  # holds w̄ while it is recomputed and evaluated
        self.parameters = [p for p in self.model.parameters() if p.requires_grad]
        self.names = [name for name, p in self.model.named_parameters() if p.requires_grad]
        self.optimizer = make_optimizer(self.model, plan)
        # The same number, one pass over the weights less; not where clipping must see the whole gradient.
        self.folded = plan.grad_clip_norm is None and can_fold_pull(self.optimizer)
        if self.folded:
            fold_pull(self.optimizer, plan.pull)
        self.mean = RunningMean(self.model, dtype=torch.float64, compensated=False)
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
        recompute = min(BATCH_NORM_IMAGES, len(self.train)) if has_batch_norm(self.model) else 0
        per_epoch = self.schedule.steps_per_epoch
        images = min(len(self.train), per_epoch * self.plan.batch_size)
        begin = len(self.val) + (len(self.val) + recompute if recompute else 0)
        trough = 2 * len(self.val) + recompute
        epochs = self.schedule.total_steps // per_epoch
        total = Clock.TRAINING * epochs * images + begin + self.plan.cycles * trough + recompute
        trained = step // per_epoch * images + step % per_epoch * self.plan.batch_size
        done = Clock.TRAINING * trained + step // self.schedule.steps_per_cycle * trough + (begin if step else 0)
        return Clock(total, done, self.plan.cycles, self.schedule.total_steps)

    def _restore(self, state: resume.State) -> None:
        self.model.load_state_dict(state.model)
        self.optimizer.load_state_dict(state.optimizer)
        self.mean.load_state_dict(state.mean)
        self.meter.load_state_dict(state.meter)
        self.results, self.step = state.results, state.step
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
            position = self.schedule.at(self.step)
            self._train_step(position)
            self.step += 1
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
        inputs = self.prepare.augmented(images, "augment", position.step)
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
        found = self._predict(self.model, position)
        total = self.results.probabilities
        self.results.probabilities = found.probabilities.double() + (0 if total is None else total)
        snapshot = score(found.probabilities, self.val.labels, found.losses)
        self.results.snapshots.append(snapshot.model_dump())
        path = self._snapshot_path(n)
        self.writer.write(path, self.model.state_dict(), snapshots=1, n=n)
        self.reporter.snapshot(n, self.step, str(path), snapshot)

        self.mean.update(self.model)
        self._refresh_anchor()
        averaged = self._evaluate_mean(position)
        self.results.averaged.append(averaged.model_dump())
        self.reporter.averaged(n, averaged)
        self.model.train()
        self.meter.pause()

    def _finish(self) -> Outcome:
        self._beat("report", None)
        self.mean.copy_to(self.probe)
        self._as_uploaded(self.probe)
        self._recompute(self.probe, None)
        weights = self.work.scratch / "averaged.safetensors"
        self.writer.write(weights, self.probe.state_dict(), snapshots=self.plan.cycles)
        pytorch = weights.with_suffix(".pth")
        torch.save(read_tensors(weights), pytorch)
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
        )
        curve = [
            CurvePoint(n=n, accuracy=point["accuracy"], loss=point["loss"])
            for n, point in enumerate(results.averaged, start=1)
        ]
        return Outcome(weights, pytorch, metrics, curve, verdict(results.averaged_losses, results.start_losses))

    # What the method is made of.

    def _evaluate_start(self) -> None:
        found = self._predict(self.model, None)
        start = score(found.probabilities, self.val.labels, found.losses)
        self.results.start, self.results.start_losses = start.model_dump(), found.losses
        self.results.start_recomputed = start.model_dump()
        if has_batch_norm(self.probe):
            self.probe.load_state_dict(self.model.state_dict())
            self._recompute(self.probe, None)
            again = self._predict(self.probe, None)
            self.results.start_recomputed = score(again.probabilities, self.val.labels, again.losses).model_dump()
        chance = 1 / len(set(self.val.labels.tolist()))
        if start.accuracy < 1.5 * chance:
            self.reporter.log(
                "warning",
                f"the start's accuracy on held-out images is {start.accuracy:.1%}, near chance ({chance:.1%}): check "
                "`classes` (the checkpoint's class order), `recipe.normalize` and `recipe.image_size`",
            )

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

    def _evaluate_mean(self, position: Position) -> Score:
        self.mean.copy_to(self.probe)
        self._as_uploaded(self.probe)
        self._recompute(self.probe, position)
        self._as_uploaded(self.probe)
        found = self._predict(self.probe, position)
        self.results.averaged_losses = found.losses
        return score(found.probabilities, self.val.labels, found.losses)

    def _as_uploaded(self, model: nn.Module) -> None:
        """Round to the dtype that the file will have (half-precision checkpoints): what is evaluated is what is sent."""
        for name, tensor in model.state_dict().items():
            dtype = self.writer.dtype(name)
            if tensor.is_floating_point() and dtype not in (None, tensor.dtype):
                tensor.copy_(tensor.to(dtype))

    def _recompute(self, model: nn.Module, position: Position | None) -> None:
        """BatchNorm statistics over the same augmented training images for every arm: they depend on the seed alone."""

        def forward(module: nn.Module, chunk: tuple[int, Tensor]) -> None:
            index, chosen = chunk
            images = self.train.images[chosen.to(self.train.images.device)]
            inputs = self.prepare.augmented(images, "batchnorm-augment", index)
            torch.manual_seed(key(self.plan.seed, "batchnorm-forward", index))  # whatever else a network may draw
            with torch.autocast(self.device.type, dtype=torch.bfloat16, enabled=self.plan.bfloat16):
                module(inputs)
            self.clock.spend(len(chosen), training=False)
            self._beat("batchnorm", position)

        drawn = permutation(len(self.train), self.plan.seed, "batchnorm")[:BATCH_NORM_IMAGES]
        slices = even_slices(len(drawn), forward_batch(self.plan.image_size))
        try:
            recompute_batch_norm(model, [(index, drawn[part]) for index, part in enumerate(slices)], forward)
        except ValueError as error:
            step = f"after step {position.step + 1}" if position else "for the start"
            raise Diverged(f"BatchNorm statistics could not be computed {step}: {error}") from error

    def _predict(self, model: nn.Module, position: Position | None) -> Outputs:
        def tick(images: int) -> None:
            self.clock.spend(images, training=False)
            self._beat("evaluate", position)

        found = predict(model, self.val, self.prepare, self.plan.bfloat16, tick)
        if not bool(torch.isfinite(found.losses).all()):
            when = f"after cycle {position.cycle}" if position else "of the start"
            raise Diverged(
                f"the loss on held-out images {when} is not finite: lower method.high.lr, or check the start"
            )
        return found

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
        )
        path = resume.save(self.work.scratch, state, keep=self._durable)
        self._durable = path if durable else self._durable
        self._saved_at = time.monotonic()
        self.reporter.saved(str(path), self.step, durable)

    def _beat(self, phase: StepPhase, position: Position | None, can_stop: bool = False) -> None:
        self._beat_at = time.monotonic()
        reason = self.reporter.heartbeat(self.clock.progress(phase, position, self.meter, self.step))
        if reason is None:
            return
        if can_stop and reason != "cancel" and not (self._durable and resume.step_of(self._durable) == self.step):
            self._save(durable=True)
        if can_stop or reason == "cancel":
            raise Stopped(reason)


def _make_deterministic(work: Work, threads: int | None) -> None:
    """One thread instead of two changes the bits: the count is part of the state. GPU kernels are the repeatable ones."""
    if threads is not None:
        torch.set_num_threads(threads)
    if work.device.startswith("cuda"):
        torch.use_deterministic_algorithms(True, warn_only=not work.reproducible)
        torch.backends.cudnn.benchmark = False
