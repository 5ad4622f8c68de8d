"""The schedule of a job as pure functions of the step: its rate and phase, when a snapshot is taken, which weights enter the
mean, and how strongly it pulls. Resuming restores one integer. Torch-free: the API plans with it what training does.

    cyclic_swa   |high|low|high|low|…           a snapshot at the end of every cycle
    swa          \\anneal|constant …             snapshots at a fixed spacing once the annealing is over; `swad`: every step
    ema, lawa,   one decay (cosine by default)    every step, the last L snapshots,
    none                                          the last weights
    auto         fall along a cosine to 0         every quarter of an epoch, in segments; a memorised start: after a hold

Phases: *high* is the high phase of a cycle, the hold of `auto`, the annealing of `swa`, and a warm-up with the peak after it;
*low* is the low phase of a cycle, the constant rate of `swa` after its annealing, and wherever else the rate has begun to fall.
"""

from bisect import bisect_left, bisect_right
from collections.abc import Callable
from dataclasses import dataclass, replace
from math import ceil
from typing import Literal

from wbar.method import (
    MAX_CYCLES,
    AutoMethod,
    CyclicSwa,
    Ema,
    Lawa,
    Plain,
    StartKind,
    Straight,
    Swa,
    Training,
)
from wbar_averaging.cyclic_lr import CyclicSchedule, Phase, PhaseRate, Position

BACK_OFF = 3.0  # what the high rate is divided by when the first snapshot is far below the start, or none was reached
PUBLISHED = 6  # snapshots of a method that averages steps
VISITS = 24  # of `auto`, at least


@dataclass(frozen=True)
class Schedule:
    """The schedule of a job, as functions of the optimizer step (counted from 0).

    snapshots: the counts of steps after which a snapshot is taken, the last one after all steps.
    rate: the learning rate of a step.
    phase: the phase of a step.
    pull: the strength λ of a step's pull.
    visits: whether the weights after a step enter the mean. visits_every_step: they always do.
    stops_by: what early stopping counts; snapshots, or epochs where those are few.
    """

    total_steps: int
    steps_per_epoch: int
    snapshots: tuple[int, ...]
    rate: Callable[[int], float]
    phase: Callable[[int], Phase]
    pull: Callable[[int], float]
    visits: Callable[[int], bool]
    visits_every_step: bool = False
    stops_by: Literal["snapshots", "epochs"] = "snapshots"

    def at(self, step: int) -> Position:
        """Return the position of step 0 ≤ step < total_steps; its cycle is the number of the snapshot that comes next.

        Raises IndexError outside.
        """
        if not 0 <= step < self.total_steps:
            raise IndexError(f"step {step} lies outside the schedule of {self.total_steps} steps")
        phase, done = self.phase(step), step + 1
        passed = bisect_right(self.snapshots, step)
        snapshot = self.snapshots[passed] == done
        return Position(
            step=step,
            cycle=passed + 1,
            phase=phase,
            epoch=step // self.steps_per_epoch + 1,
            step_in_epoch=step % self.steps_per_epoch,
            lr=self.rate(step),
            ends_phase=snapshot or self.phase(done) != phase,
            ends_cycle=snapshot,
        )


def steps_per_epoch(images: int, batch_size: int, devices: int = 1) -> int:
    """Return the number of optimizer steps of one pass over `images` training images.

    The short last batch is kept unless it leaves a device with a single image, whose variance BatchNorm cannot take.
    """
    steps = -(-images // batch_size)
    too_small = 0 < images % batch_size < 2 * devices
    return steps - 1 if too_small and steps > 1 else steps


def build_schedule(
    method: Training,
    steps_per_epoch: int,
    back_offs: int = 0,
    start_kind: StartKind = "underfit",
    rate_factor: float = 1.0,
) -> Schedule:
    """Build the schedule of a resolved method.

    back_offs: how often the high rate was divided by BACK_OFF.
    start_kind, rate_factor: what the job found the start to be, and to bear.

    Raises ValueError for more than MAX_CYCLES snapshots, and where an `auto` is left.
    """
    scale = BACK_OFF**-back_offs
    if isinstance(method, CyclicSwa):
        return _cyclic(method, steps_per_epoch, scale, rate_factor)
    if isinstance(method, AutoMethod):
        return _auto(method, steps_per_epoch, scale * rate_factor, start_kind)
    if isinstance(method, Swa):
        return _swa(method, steps_per_epoch, scale)
    return _decaying(method, steps_per_epoch, scale)


def shifted(position: Position, steps: int, epochs: int) -> Position:
    """Return `position` in a schedule that begins `steps` steps and `epochs` epochs after another one."""
    return replace(position, step=position.step + steps, epoch=position.epoch + epochs)


def number(value: float | str) -> float:
    """Return a resolved number. Raises ValueError where an `auto` is left."""
    if isinstance(value, str):
        raise ValueError("the method is not resolved: an `auto` is left")
    return value


def _steps(epochs: float, steps_per_epoch: int) -> int:
    return max(1, round(epochs * steps_per_epoch))


def _cyclic(method: CyclicSwa, steps_per_epoch: int, scale: float, rate_factor: float) -> Schedule:
    high, low = number(method.high.lr) * rate_factor * scale, number(method.low.lr) * rate_factor
    schedule = CyclicSchedule(
        method.cycles,
        high,
        min(low, high),  # a back-off may bring the high rate below the low one, which then falls with it
        method.high.epochs,
        method.low.epochs,
        steps_per_epoch,
        shape=method.high.shape,
        warmup_steps=round(method.high.warmup_epochs * steps_per_epoch),
        warmup=method.high.warmup,
        gamma=method.high.gamma,
        milestones=tuple(method.high.milestones),
    )
    per_cycle = schedule.steps_per_cycle
    last_low = schedule.total_steps - schedule.low_steps if method.anneal_last else schedule.total_steps
    falling = PhaseRate(schedule.low_lr, 0.0, schedule.low_steps, steps_per_epoch, shape="cosine")

    def phase(step: int) -> Phase:
        return "high" if step % per_cycle < schedule.high_steps else "low"

    return Schedule(
        schedule.total_steps,
        steps_per_epoch,
        tuple(per_cycle * n for n in range(1, method.cycles + 1)),
        lambda step: schedule.at(step).lr if step < last_low else falling.at(step - last_low),
        phase,
        _pull(method, number(method.pull), phase, schedule.total_steps),
        lambda step: (step + 1) % per_cycle == 0,
    )


def _swa(method: Swa, steps_per_epoch: int, scale: float) -> Schedule:
    total, lr = _steps(method.epochs, steps_per_epoch), number(method.lr) * scale
    begin = round(method.anneal_epochs * steps_per_epoch)
    if method.average == "swad":
        begin = min(begin, total - 1)  # where rounding would leave no step to average
    # One step more than it takes: the step after the annealing is the first at `lr`.
    annealing = PhaseRate(number(method.anneal_from) * scale, lr, begin + 1, steps_per_epoch, shape=method.anneal)
    snapshots = _every(method, begin, total, steps_per_epoch)
    visited = frozenset(snapshots)

    def phase(step: int) -> Phase:
        return "high" if step < begin else "low"

    dense = method.average == "swad"
    return Schedule(
        total,
        steps_per_epoch,
        snapshots,
        lambda step: annealing.at(step) if step < begin else lr,
        phase,
        _pull(method, number(method.pull), phase, total),
        lambda step: step >= begin if dense else step + 1 in visited,
        visits_every_step=dense,
    )


def _decaying(method: Ema | Lawa | Plain, steps_per_epoch: int, scale: float) -> Schedule:
    total, lr = _steps(method.epochs, steps_per_epoch), number(method.lr) * scale
    warmup_steps = round(method.warmup_epochs * steps_per_epoch)
    decay = PhaseRate(
        lr,
        number(method.final_lr) * scale,
        total,
        steps_per_epoch,
        shape=method.shape,
        warmup_steps=warmup_steps,
        warmup=method.warmup,
        gamma=method.gamma,
        milestones=tuple(method.milestones),
        foot=0.0 if method.warmup == "gradual" else lr / 10,
    )
    if isinstance(method, Lawa):
        snapshots = _every(method, 0, total, steps_per_epoch)
    else:
        snapshots = _published(method.epochs, total, steps_per_epoch)
    visited = frozenset(snapshots)

    # Once, from the first fall on: a sawtooth, which returns to its peak, does not change the phase twice an epoch.
    # All others never rise again, so that halving finds it: there may be a hundred million steps.
    steps = range(warmup_steps, total)
    if method.shape == "sawtooth":
        first_low = next((step for step in steps[: 2 * steps_per_epoch] if decay.at(step) < lr), total)
    else:
        first_low = warmup_steps + bisect_left(steps, True, key=lambda step: decay.at(step) < lr)

    def phase(step: int) -> Phase:
        return "high" if step < first_low else "low"

    return Schedule(
        total,
        steps_per_epoch,
        snapshots,
        decay.at,
        phase,
        _pull(method, number(method.pull), phase, total),
        lambda step: isinstance(method, Ema) or step + 1 in visited,
        visits_every_step=isinstance(method, Ema),
        stops_by="snapshots" if isinstance(method, Lawa) else "epochs",
    )


def _auto(method: AutoMethod, steps_per_epoch: int, scale: float, start_kind: StartKind) -> Schedule:
    total, lr = _steps(method.epochs, steps_per_epoch), number(method.lr) * scale
    memorised = method.memorised if start_kind == "memorised" else None
    held = round(memorised.hold * total) if memorised else 0
    # Without a hold it is the cosine of `none`, to the bit: the last weights are the control's.
    falling = PhaseRate(lr, 0.0, total - held, steps_per_epoch, shape="cosine")
    segments = min(method.segments, total)
    snapshots = tuple(total * n // segments for n in range(1, segments + 1))
    every = max(1, min(round(method.visit_epochs * steps_per_epoch), total // VISITS))

    def rate(step: int) -> float:
        return lr if step < held else falling.at(step - held)

    def phase(step: int) -> Phase:
        return "high" if step <= held else "low"

    usual = _pull(method, number(method.pull), phase, total)

    def pull(step: int) -> float:
        return memorised.pull if memorised and memorised.pull and phase(step) == "low" else usual(step)

    # Every segment has a visit at its end, so that none is empty.
    return Schedule(
        total,
        steps_per_epoch,
        snapshots,
        rate,
        phase,
        pull,
        lambda step: (step + 1) % every == 0 or step + 1 in snapshots,
    )


def _every(method: Swa | Lawa, begin: int, total: int, steps_per_epoch: int) -> tuple[int, ...]:
    """Return the counts of steps after which a snapshot is taken: at the method's spacing from `begin` on, and at the end."""
    every = max(1.0, float(method.snapshot_steps or method.snapshot_epochs * steps_per_epoch))
    if total - begin > every * MAX_CYCLES:
        raise ValueError(
            f"{ceil((total - begin) / every)} snapshots, one every {every:g} steps: at most {MAX_CYCLES}; "
            "take them more rarely"
        )
    marks = {max(1, round(begin + every * n)) for n in range(1, ceil((total - begin) / every) + 1)}
    return tuple(sorted({mark for mark in marks if mark < total} | {total}))


def _published(epochs: float, total: int, steps_per_epoch: int) -> tuple[int, ...]:
    """Return the same for a method that averages steps: at most PUBLISHED snapshots, evenly, at ends of epochs."""
    count = max(1, min(PUBLISHED, int(epochs)))
    marks = {ceil(epochs * n / count) * steps_per_epoch for n in range(1, count)}
    return tuple(sorted({mark for mark in marks if mark < total} | {total}))


def _pull(
    method: Straight | CyclicSwa, strength: float, phase: Callable[[int], Phase], total: int
) -> Callable[[int], float]:
    if method.pull_in == "low":
        return lambda step: strength if phase(step) == "low" else 0.0
    if method.pull_in == "late":
        return lambda step: strength if 2 * step >= total else 0.0
    return lambda _: strength
