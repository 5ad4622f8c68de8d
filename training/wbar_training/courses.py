"""The way through the weights as a pure function of the step: its rate and phase, when a snapshot is due, which weights
enter the mean, and how strongly it pulls. Resuming restores one integer.

    cyclic_swa   |high|low|high|low|…           a snapshot after every low phase
    swa          \\anneal|constant …             a snapshot every so often once the annealing is over
    ema, lawa,   one slope (cosine by default)   every step, the last L snapshots,
    none                                          the last weights
    auto         hold … | fall along a cosine     every quarter of an epoch, in segments
"""

from bisect import bisect_right
from collections.abc import Callable
from dataclasses import dataclass, replace
from math import cos, pi

from wbar.method import AutoMethod, CyclicSwa, Ema, Lawa, Plain, Start, Straight, Swa, Training
from wbar_averaging import CyclicSchedule, PhaseRate, Position
from wbar_averaging.cyclic_lr import Phase

BACK_OFF = 3.0  # what the high rate is divided by when the first snapshot is far below the start


@dataclass(frozen=True)
class Course:
    """steps are counted from 0. snapshots: the counts of steps after which one is taken, the last after all of them."""

    total_steps: int
    steps_per_epoch: int
    snapshots: tuple[int, ...]
    rate: Callable[[int], float]
    phase: Callable[[int], Phase]
    pull: Callable[[int], float]
    visits: Callable[[int], bool]  # whether the weights after this step enter the mean

    def at(self, step: int) -> Position:
        """The position of step 0 ≤ step < total_steps; its cycle is the number of the snapshot that comes next."""
        if not 0 <= step < self.total_steps:
            raise IndexError(f"step {step} lies outside the course of {self.total_steps} steps")
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


def lay_course(method: Training, steps_per_epoch: int, backed_off: int = 0, start: Start = "underfit") -> Course:
    """The course of a resolved method. backed_off: how often the high rate was divided; start: what `auto` found it to be."""
    if isinstance(method, CyclicSwa):
        return _cyclic(method, steps_per_epoch, BACK_OFF**-backed_off)
    if isinstance(method, AutoMethod):
        return _hold_decay(method, steps_per_epoch, BACK_OFF**-backed_off, start)
    return _straight(method, steps_per_epoch, BACK_OFF**-backed_off)


def later(position: Position, steps: int, epochs: int) -> Position:
    """The same place of a course that began after so many steps and epochs of others."""
    return replace(position, step=position.step + steps, epoch=position.epoch + epochs)


def _cyclic(method: CyclicSwa, steps_per_epoch: int, scale: float) -> Course:
    high, low = number(method.high.lr) * scale, number(method.low.lr)
    schedule = CyclicSchedule(
        method.cycles,
        high,
        min(low, high),
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

    def phase(step: int) -> Phase:
        return "high" if step % per_cycle < schedule.high_steps else "low"

    snapshots = tuple(per_cycle * n for n in range(1, method.cycles + 1))
    return Course(
        schedule.total_steps,
        steps_per_epoch,
        snapshots,
        lambda step: schedule.at(step).lr,
        phase,
        _pull(method, number(method.pull), phase, schedule.total_steps),
        lambda step: (step + 1) % per_cycle == 0,
    )


def _straight(method: Straight, steps_per_epoch: int, scale: float) -> Course:
    total, lr = method.epochs * steps_per_epoch, number(method.lr) * scale
    if isinstance(method, Swa):
        begin = round(method.anneal_epochs * steps_per_epoch)
        annealing = PhaseRate(number(method.anneal_from) * scale, lr, begin + 1, steps_per_epoch, shape=method.anneal)

        def rate(step: int) -> float:
            return annealing.at(min(step, begin))
    else:
        assert isinstance(method, Ema | Lawa | Plain)
        rate = _slope(method, lr, scale, total, steps_per_epoch).at
    snapshots = method.marks(steps_per_epoch)
    visited = frozenset(snapshots)

    def phase(step: int) -> Phase:
        return "low" if rate(step) < lr else "high"

    def visits(step: int) -> bool:
        return isinstance(method, Ema) or step + 1 in visited

    pull = _pull(method, number(method.pull), phase, total)
    return Course(total, steps_per_epoch, snapshots, rate, phase, pull, visits)


def _slope(method: Ema | Lawa | Plain, lr: float, scale: float, total: int, steps_per_epoch: int) -> PhaseRate:
    return PhaseRate(
        lr,
        number(method.final_lr) * scale,
        total,
        steps_per_epoch,
        shape=method.shape,
        warmup_steps=round(method.warmup_epochs * steps_per_epoch),
        warmup=method.warmup,
        gamma=method.gamma,
        milestones=tuple(method.milestones),
        foot=0.0 if method.warmup == "gradual" else lr / 10,
    )


def _hold_decay(method: AutoMethod, steps_per_epoch: int, scale: float, start: Start) -> Course:
    total = method.epochs * steps_per_epoch
    regime = method.regime(start)
    high = number(regime.lr if regime else method.lr) * scale
    held = round(method.hold * total)
    snapshots = method.marks(steps_per_epoch)
    every = max(1, round(method.visit_epochs * steps_per_epoch))

    def rate(step: int) -> float:
        if step < held:
            return high
        u = (step - held) / max(1, total - 1 - held)
        return high * (method.low + (1 - method.low) * (1 + cos(pi * u)) / 2)

    def phase(step: int) -> Phase:
        return "high" if step < held else "low"

    usual = _pull(method, number(method.pull), phase, total)

    def pull(step: int) -> float:
        return regime.pull if regime and regime.pull and step >= held else usual(step)

    # Every segment has a visit at its end, so that none is empty.
    return Course(
        total,
        steps_per_epoch,
        snapshots,
        rate,
        phase,
        pull,
        lambda step: (step + 1) % every == 0 or step + 1 in snapshots,
    )


def _pull(method: Training, strength: float, phase: Callable[[int], Phase], total: int) -> Callable[[int], float]:
    if method.pull_in == "low":
        return lambda step: strength if phase(step) == "low" else 0.0
    if method.pull_in == "late":
        return lambda step: strength if 2 * step >= total else 0.0
    return lambda _: strength


def number(value: float | str) -> float:
    """A resolved number. Raises ValueError where an `auto` is left."""
    if isinstance(value, str):
        raise ValueError("the method is not resolved: an `auto` is left")
    return value
