"""The high/low schedule as a pure function of the step: resuming restores one integer."""

from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True)
class Position:
    """Where one optimizer step stands. Counters start at 1, except `step` and `step_in_epoch` (0: the first step)."""

    step: int
    cycle: int
    phase: Literal["high", "low"]
    epoch: int  # over the whole job
    step_in_epoch: int
    lr: float
    ends_phase: bool
    ends_cycle: bool


@dataclass(frozen=True)
class CyclicSchedule:
    """n cycles of `high_epochs` at `high_lr` and `low_epochs` at `low_lr`; rates are constant within a phase."""

    cycles: int
    high_lr: float
    low_lr: float
    high_epochs: int
    low_epochs: int
    steps_per_epoch: int

    def __post_init__(self) -> None:
        for name in ("cycles", "high_epochs", "low_epochs", "steps_per_epoch"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, not {getattr(self, name)}")
        for name in ("high_lr", "low_lr"):
            if not getattr(self, name) > 0:
                raise ValueError(f"{name} must be above 0, not {getattr(self, name)}")

    @property
    def steps_per_cycle(self) -> int:
        return (self.high_epochs + self.low_epochs) * self.steps_per_epoch

    @property
    def total_steps(self) -> int:
        return self.cycles * self.steps_per_cycle

    def at(self, step: int) -> Position:
        """The position of optimizer step `step`, 0 ≤ step < total_steps. Raises IndexError outside."""
        if not 0 <= step < self.total_steps:
            raise IndexError(f"step {step} lies outside the schedule of {self.total_steps} steps")
        cycle, within = divmod(step, self.steps_per_cycle)
        high_steps = self.high_epochs * self.steps_per_epoch
        high = within < high_steps
        return Position(
            step=step,
            cycle=cycle + 1,
            phase="high" if high else "low",
            epoch=step // self.steps_per_epoch + 1,
            step_in_epoch=step % self.steps_per_epoch,
            lr=self.high_lr if high else self.low_lr,
            ends_phase=within + 1 in (high_steps, self.steps_per_cycle),
            ends_cycle=within + 1 == self.steps_per_cycle,
        )
