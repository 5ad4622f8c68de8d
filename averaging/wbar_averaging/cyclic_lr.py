"""The high/low schedule as a pure function of the step: resuming restores one integer.

A cycle is a high phase and a low phase. In a phase of m steps, step i (from 0) has the rate, with u = i / (m − 1), so that
the last step is at the low rate exactly; where the low rate is 0, u = i / m, so that no step is wasted at rate 0:

    constant     high
    linear       high + (low − high)·u
    cosine       low + (high − low)·½(1 + cos πu)             (Loshchilov & Hutter 2017, equation 5)
    exponential  high·γ^e, e the epochs since the phase began, continuously (a fraction within an epoch); γ = 0.98
    step         high·0.1^k, k the milestones passed           (fractions of the phase; 1/2 and 3/4)
    poly         low + (high − low)·(1 − u)^0.9               (Chen et al. 2018, "DeepLab", section 3.1)
    sawtooth     from high to high/100 within each epoch (or a shorter phase), linearly; then again

The low phase is constant at the low rate; without one, a cycle ends where the shape of its high phase ends. Warm-up takes
the first k steps of each high phase: *gradual*, step i of k (from 1) at low + (high − low)·i/k (Goyal et al. 2017), or
*constant* at the low rate; the decay takes the steps after it.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from math import cos, inf, pi
from typing import Any, Literal, get_args

Phase = Literal["high", "low"]
Shape = Literal["constant", "linear", "cosine", "exponential", "step", "sawtooth", "poly"]
WarmUp = Literal["gradual", "constant"]
POLY = 0.9  # the power of `poly`


@dataclass(frozen=True)
class Position:
    """The place of one optimizer step in a schedule. Counters start at 1, `step` and `step_in_epoch` at 0."""

    step: int
    cycle: int
    phase: Phase
    epoch: int  # over the whole job
    step_in_epoch: int
    lr: float
    ends_phase: bool
    ends_cycle: bool


@dataclass(frozen=True)
class CyclicSchedule:
    """n cycles of `high_epochs` from `high_lr` and `low_epochs` at `low_lr`. Rates are per optimizer step.

    high_epochs: length in epochs, may be a fraction; rounded to whole steps, at least one.
    low_epochs: the same; 0: no low phase.
    shape, gamma, milestones: the decay inside the high phase (see the module).
    warmup_steps, warmup: the beginning of the high phase (see the module).

    Raises ValueError, naming the field, on numbers that make no schedule.
    """

    cycles: int
    high_lr: float
    low_lr: float
    high_epochs: float
    low_epochs: float
    steps_per_epoch: int
    shape: Shape = "constant"
    warmup_steps: int = 0
    warmup: WarmUp = "gradual"
    gamma: float = 0.98
    milestones: Sequence[float] = (0.5, 0.75)

    def __post_init__(self) -> None:
        for name in ("cycles", "steps_per_epoch"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, not {getattr(self, name)}")
        if not 0 < self.high_epochs < inf:
            raise ValueError(f"high_epochs must be a number above 0, not {self.high_epochs}")
        if not 0 <= self.low_epochs < inf:
            raise ValueError(f"low_epochs must be 0 or more, not {self.low_epochs}")
        for name in ("high_lr", "low_lr", "gamma"):
            if not 0 < getattr(self, name) < inf:
                raise ValueError(f"{name} must be a number above 0, not {getattr(self, name)}")
        for name, kind in (("shape", Shape), ("warmup", WarmUp)):
            if getattr(self, name) not in get_args(kind):
                raise ValueError(f"{name} must be one of {', '.join(get_args(kind))}, not {getattr(self, name)!r}")
        if not 0 <= self.warmup_steps <= self.high_steps:
            raise ValueError(f"warmup_steps must lie in 0..{self.high_steps} (a high phase), not {self.warmup_steps}")
        if not all(0 < at < 1 for at in self.milestones):
            raise ValueError(f"milestones must be fractions of the phase in (0, 1), not {list(self.milestones)}")

    @classmethod
    def in_steps(
        cls, cycles: int, high_lr: float, low_lr: float, high_steps: int, low_steps: int, **shape: Any
    ) -> "CyclicSchedule":
        """Make a schedule whose phases are counted in optimizer steps: an epoch is one step."""
        return cls(cycles, high_lr, low_lr, high_steps, low_steps, steps_per_epoch=1, **shape)

    @property
    def high_steps(self) -> int:
        """Optimizer steps of one high phase."""
        return max(1, round(self.high_epochs * self.steps_per_epoch))

    @property
    def low_steps(self) -> int:
        """Optimizer steps of one low phase; 0 without one."""
        return max(1, round(self.low_epochs * self.steps_per_epoch)) if self.low_epochs else 0

    @property
    def steps_per_cycle(self) -> int:
        """Optimizer steps of one cycle."""
        return self.high_steps + self.low_steps

    @property
    def total_steps(self) -> int:
        """Optimizer steps of all cycles."""
        return self.cycles * self.steps_per_cycle

    def at(self, step: int) -> Position:
        """Return the position of optimizer step `step`, 0 ≤ step < total_steps. Raises IndexError outside."""
        if not 0 <= step < self.total_steps:
            raise IndexError(f"step {step} lies outside the schedule of {self.total_steps} steps")
        cycle, within = divmod(step, self.steps_per_cycle)
        high = within < self.high_steps
        return Position(
            step=step,
            cycle=cycle + 1,
            phase="high" if high else "low",
            epoch=step // self.steps_per_epoch + 1,
            step_in_epoch=step % self.steps_per_epoch,
            lr=self._phase.at(within) if high else self.low_lr,
            ends_phase=within + 1 in (self.high_steps, self.steps_per_cycle),
            ends_cycle=within + 1 == self.steps_per_cycle,
        )

    @property
    def _phase(self) -> "PhaseRate":
        return PhaseRate(
            self.high_lr,
            self.low_lr,
            self.high_steps,
            self.steps_per_epoch,
            shape=self.shape,
            warmup_steps=self.warmup_steps,
            warmup=self.warmup,
            gamma=self.gamma,
            milestones=self.milestones,
        )


@dataclass(frozen=True)
class PhaseRate:
    """The rate inside one phase of `steps` optimizer steps, from `high` down to `low` (see the module for the shapes).

    Warm-up starts at `foot` (by default `low`): *gradual*, step i of k (from 1) at foot + (high − foot)·i/k, which is iη/k
    for foot = 0 (Goyal et al. 2017, section 2.2); *constant*, k steps at `foot` (He et al. 2016).
    """

    high: float
    low: float
    steps: int
    steps_per_epoch: int
    shape: Shape = "constant"
    warmup_steps: int = 0
    warmup: WarmUp = "gradual"
    gamma: float = 0.98
    milestones: Sequence[float] = (0.5, 0.75)
    foot: float | None = None

    def at(self, step: int) -> float:
        """Return the rate of step 0 ≤ step < steps."""
        if step < self.warmup_steps:
            foot = self.low if self.foot is None else self.foot
            share = (step + 1) / self.warmup_steps if self.warmup == "gradual" else 0.0
            return foot + (self.high - foot) * share
        return self._decayed(step - self.warmup_steps, self.steps - self.warmup_steps)

    def _decayed(self, i: int, m: int) -> float:
        high, low = self.high, self.low
        u = i / m if low == 0 else i / (m - 1) if m > 1 else 0.0
        if self.shape == "linear":
            return high + (low - high) * u
        if self.shape == "cosine":
            return low + (high - low) * (1 + cos(pi * u)) / 2
        if self.shape == "exponential":
            return high * float(self.gamma ** ((i + self.warmup_steps) / self.steps_per_epoch))
        if self.shape == "step":
            return high * float(0.1 ** sum(i >= at * m for at in self.milestones))
        if self.shape == "poly":
            return low + (high - low) * float((1 - u) ** POLY)
        if self.shape == "sawtooth":
            span = min(self.steps_per_epoch, self.steps)
            return high * (1 - 0.99 * ((i + self.warmup_steps) % span) / (span - 1)) if span > 1 else high
        return high
