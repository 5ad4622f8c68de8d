"""Where a job is: the schedule from w_0 on, the average that it feeds, and the step; a back-off begins the schedule again.

Steps are counted over the whole job, those that a back-off discarded among them; the schedule counts from w_0.
"""

from collections.abc import Iterator

from wbar.method import CyclicSwa, Training
from wbar.schedule import Schedule, build_schedule, shifted, steps_per_epoch
from wbar_averaging import Position
from wbar_training.averages.average import Average
from wbar_training.averages.choice import ChoiceLimits
from wbar_training.averages.making import make_average
from wbar_training.distributed.ranks import Ranks
from wbar_training.resume import Results
from wbar_training.selection_evaluator import limits_of
from wbar_training.setup import Setup


class Course:
    """The course of one job, as `results` decide it: the kind of start, the rate that it bears, back-offs, an early end.

    step: how many optimizer steps are taken. position: of the last one; None before the first of this attempt.
    total_steps: after which training is over.
    limits: what the choice of the average may cost.
    """

    def __init__(self, setup: Setup, method: Training, results: Results) -> None:
        self._setup, self._method, self._results = setup, method, results
        self.step = 0
        self.position: Position | None = None
        self.plan()

    def plan(self) -> None:
        """Make the schedule and an empty average from w_0, which the network must hold."""
        setup, results = self._setup, self._results
        per_epoch = steps_per_epoch(len(setup.data.train), setup.plan.batch_size, Ranks.here().size)
        factor = 1.0 if results.rate_probe is None else results.rate_probe.factor
        self.schedule: Schedule = build_schedule(self._method, per_epoch, results.back_offs, results.start_kind, factor)
        self.average: Average = make_average(self._method, self.schedule, setup.model)
        self.limits: ChoiceLimits = limits_of(setup, self.schedule)
        self.total_steps = results.stopped_at or results.discarded_steps + self.schedule.total_steps

    def end_here(self) -> None:
        """Let training be over after the steps that are taken."""
        self._results.stopped_at = self.total_steps = self.step

    @property
    def taken(self) -> int:
        """The steps from w_0."""
        return self.step - self._results.discarded_steps

    @property
    def is_over(self) -> bool:
        """Whether all steps are taken."""
        return self.step >= self.total_steps

    def at(self, step: int) -> Position:
        """Return the position of a step of the job."""
        results = self._results
        place = self.schedule.at(step - results.discarded_steps)
        return shifted(place, results.discarded_steps, results.discarded_epochs)

    def ahead(self) -> Iterator[Position]:
        """Return the positions from here to the end of the schedule."""
        return (self.at(step) for step in range(self.step, self.total_steps))

    def pull(self, position: Position) -> float:
        """Return the strength λ of a step's pull."""
        return self.schedule.pull(position.step - self._results.discarded_steps)

    def visits(self, position: Position) -> bool:
        """Return whether the weights after a step enter the mean."""
        return self.schedule.visits(position.step - self._results.discarded_steps)

    def rate_field(self, phase: str) -> str:
        """Return the name of the option that sets the rate of a phase."""
        return f"method.{phase}.lr" if isinstance(self._method, CyclicSwa) else "method.lr"
